"""Check of a server against the protocol of the NeurIPS 2023 LLM Efficiency Challenge. Each rule is a function.

The check uses HTTP only: the server may run any model in any software.
"""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from lit_llm.args.evaluate import ChallengeCheckArgs
from lit_llm.errors import LitError

HEALTH = {"prompt": "The capital of France is "}  # the whole request of the organisers' health check
# A request of HELM (crfm-helm, helm.clients.http_model_client), which sends a temperature of 1e-7 for 0.
HELM = {
    "prompt": "Question: Which planet is the largest?\nA. Mars\nB. Jupiter\nAnswer:", "temperature": 1e-7,
    "num_return_sequences": 1, "max_new_tokens": 1, "top_p": 1, "echo_prompt": False, "top_k_per_token": 1,
    "stop_sequences": ["\n"],
}  # fmt: skip
STORY = "Once upon a time, there was a little girl"
SPECIAL = ("<s>", "</s>", "<|endoftext|>", "<eos>", "<|im_end|>", "<|eot_id|>")

Json = dict[str, Any]


class Server:
    """The server to check.

    Args:
        timeout: Most seconds of an answer.
        context: Tokens of a prompt and its continuation that the server must accept.
    """

    def __init__(self, url: str, timeout: float, context: int) -> None:
        self.url, self.timeout, self.context = url.rstrip("/"), timeout, context

    def send(self, path: str, body: Any) -> tuple[int, Any]:
        """Return the status and the parsed body of the answer. Raises AssertionError if the body is not strict JSON."""
        request = Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=self.timeout) as answer:
                status, text = answer.status, answer.read()
        except HTTPError as error:
            status, text = error.code, error.read()
        try:
            return status, json.loads(text, parse_constant=_not_json)
        except ValueError as error:
            raise AssertionError(f"{path} answered {text[:80]!r}, which is not JSON ({error})") from error

    def ask(self, path: str, body: Json) -> Json:
        """Return the body of the answer. Raises AssertionError if the status is not 200."""
        status, answer = self.send(path, body)
        assert status == 200, f"{path} answered {status} to {json.dumps(body)[:200]}: {str(answer)[:200]}"
        return answer

    def process(self, prompt: str = STORY, **options: Any) -> Json:
        return self.ask("/process", {"prompt": prompt, "temperature": 1e-7, **options})

    def tokenize(self, text: str, **options: Any) -> list[int]:
        return self.ask("/tokenize", {"text": text, **options})["tokens"]

    def decode(self, tokens: list[int]) -> str:
        return self.ask("/decode", {"tokens": tokens})["text"]


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")


def _joined(answer: Json) -> str:
    return "".join(token["text"] for token in answer["tokens"])


def health_check(server: Server) -> None:
    """A request with nothing but a prompt returns text, tokens, logprob and request_time."""
    answer = server.ask("/process", HEALTH)
    kinds = {"text": str, "tokens": list, "logprob": int | float, "request_time": int | float}
    for name, kind in kinds.items():
        assert isinstance(answer.get(name), kind), f"{name} is {answer.get(name)!r}"
    for token in answer["tokens"]:
        assert isinstance(token.get("text"), str), f"a token's text is {token.get('text')!r}"
        assert isinstance(token.get("logprob"), int | float), f"a token's logprob is {token.get('logprob')!r}"
        top = token.get("top_logprob")
        assert isinstance(top, dict) and all(isinstance(v, int | float) for v in top.values()), f"top_logprob is {top!r}"
    assert len(answer["tokens"]) <= 50, "more than 50 new tokens, the default"


def helm_request(server: Server) -> None:
    """A request of HELM, which has fields that the protocol does not list, is accepted."""
    server.ask("/process", HELM)


def null_fields(server: Server) -> None:
    """seed and echo_prompt may be null."""
    server.process(max_new_tokens=2, seed=None, echo_prompt=None)


def strict_json(server: Server) -> None:
    """Responses contain neither NaN nor infinity, at any temperature."""
    for temperature in (1e-7, 0.0, 1e-5, 2.0):
        server.process(max_new_tokens=4, temperature=temperature, seed=1, echo_prompt=True)


def tokens_join(server: Server) -> None:
    """The texts of the tokens join to the text."""
    variants: list[Json] = [{}, {"echo_prompt": True}, {"temperature": 1.5, "seed": 3}]
    for options in variants:
        answer = server.process(max_new_tokens=16, **options)
        assert _joined(answer) == answer["text"], f"{_joined(answer)!r} is not {answer['text']!r}"


def log_probabilities(server: Server) -> None:
    """Log-probabilities are at most 0, and logprob is their sum."""
    answer = server.process(max_new_tokens=8, echo_prompt=True)
    values = [token["logprob"] for token in answer["tokens"]]
    assert all(value <= 1e-4 for value in values), f"logprob {max(values)} is above 0"
    top = [value for token in answer["tokens"] for value in token["top_logprob"].values()]
    assert all(value <= 1e-4 for value in top), "top_logprob contains a value above 0: a probability?"
    total, found = sum(values), answer["logprob"]
    assert abs(total - found) < 1e-3 * max(1, abs(total)), f"logprob {found} is not the sum {total}"


def request_time(server: Server) -> None:
    """request_time is in seconds, and at most the time of the request."""
    requests: list[tuple[str, Json]] = [
        ("/process", {"prompt": STORY, "max_new_tokens": 4}), ("/tokenize", {"text": STORY}), ("/decode", {"tokens": [5]}),
    ]  # fmt: skip
    for path, body in requests:
        start = time.perf_counter()
        found = server.ask(path, body)["request_time"]
        elapsed = time.perf_counter() - start
        assert 0 < found <= elapsed, f"{path} took at most {elapsed:.3f} s, but its request_time is {found}"


def greedy(server: Server) -> None:
    """A temperature of at most 1e-5 always selects the most likely token."""
    answers = [server.process(max_new_tokens=12, temperature=t, seed=s) for t, s in ((1e-7, 1), (1e-5, 2), (0.0, None))]
    assert len({answer["text"] for answer in answers}) == 1, "the same request has different answers"
    for token in answers[0]["tokens"]:
        best = max(token["top_logprob"].values(), default=token["logprob"])
        assert token["logprob"] >= best - 1e-3, f"{token['text']!r} was selected, but another token is more likely"


def seed(server: Server) -> None:
    """Samples with the same seed are equal; samples without a seed differ."""
    one, two = (server.process(max_new_tokens=16, temperature=1.0, seed=7)["text"] for _ in range(2))
    assert one == two, "the same seed has different answers"
    others = {server.process(max_new_tokens=24, temperature=1.5)["text"] for _ in range(4)}
    assert len(others) > 1, "without a seed, four samples are equal"


def _check_most_likely(server: Server, **option: Any) -> None:
    found = server.process(max_new_tokens=12, temperature=1.5, seed=5, **option)["text"]
    assert found == server.process(max_new_tokens=12)["text"], f"{next(iter(option))} is ignored"


def top_p(server: Server) -> None:
    """A tiny top_p selects the most likely token."""
    _check_most_likely(server, top_p=1e-6)


def top_k(server: Server) -> None:
    """top_k 1 selects the most likely token."""
    _check_most_likely(server, top_k=1)


def candidates(server: Server) -> None:
    """top_k_per_token sets the number of candidates to report, and does not change the sampling."""
    for token in server.process(max_new_tokens=4, top_k_per_token=5)["tokens"]:
        assert 2 <= len(token["top_logprob"]) <= 5, f"{len(token['top_logprob'])} candidates instead of 5"
    samples = {server.process(max_new_tokens=24, temperature=1.5, top_k_per_token=1)["text"] for _ in range(4)}
    assert len(samples) > 1, "top_k_per_token 1 made sampling greedy"


def max_new_tokens(server: Server) -> None:
    """At most max_new_tokens are generated; 0 generates none."""
    for limit in (0, 1, 7):
        n = len(server.process(max_new_tokens=limit)["tokens"])
        assert n <= limit, f"{n} tokens with max_new_tokens={limit}"


def echo(server: Server) -> None:
    """With echo_prompt, text and tokens begin with the prompt, and the continuation is unchanged."""
    plain, echoed = (server.process(max_new_tokens=8, echo_prompt=e) for e in (False, True))
    assert echoed["text"] == STORY + plain["text"], f"{echoed['text']!r} is not the prompt followed by {plain['text']!r}"
    n_prompt = len(echoed["tokens"]) - len(plain["tokens"])
    assert "".join(token["text"] for token in echoed["tokens"][:n_prompt]) == STORY, "the first tokens are not the prompt"
    assert echoed["tokens"][0]["logprob"] == 0.0, "nothing precedes the first token: its logprob must be 0.0"


def scoring(server: Server) -> None:
    """echo_prompt without new tokens scores the prompt: the logprob of token i is log p(t_i | t_<i)."""
    answer = server.process(max_new_tokens=0, echo_prompt=True)
    assert answer["text"] == STORY, f"the text is {answer['text']!r}"
    ids, tokens = server.tokenize(STORY), answer["tokens"]
    assert len(tokens) == len(ids), f"{len(tokens)} tokens, but /tokenize returns {len(ids)}"
    for i in range(len(ids), 1, -1):
        prefix = server.decode(ids[:i])
        generated = server.process(prefix, max_new_tokens=1)["tokens"]
        text = generated[0]["text"] if generated else ""
        longer = server.tokenize(prefix + text)
        # Not one character: two tokens may have this text, one of them for a byte.
        if len(text.strip()) > 1 and len(longer) == i + 1 and longer[:i] == ids[:i]:
            token = server.process(prefix + text, max_new_tokens=0, echo_prompt=True)["tokens"][-1]
            in_prompt, new = token["logprob"], generated[0]["logprob"]
            assert abs(in_prompt - new) < 1e-2, f"{text!r} has logprob {in_prompt} in a prompt, {new} when generated"
            return
    raise AssertionError("no generated token could be sent back in a prompt")


def stop_sequences(server: Server) -> None:
    """Text and tokens end before the earliest stop sequence."""
    whole = server.process(max_new_tokens=24)["text"]
    for length in (1, 3):
        stop = whole[len(whole) // 2 :][:length]
        if not stop:
            continue
        answer = server.process(max_new_tokens=24, stop_sequences=["@@never@@", stop])
        expected = whole[: whole.index(stop)]
        assert answer["text"] == expected, f"with stop {stop!r} the text is {answer['text']!r}, not {expected!r}"
        assert _joined(answer) == expected, f"with stop {stop!r} the tokens are {_joined(answer)!r}"


def end_of_text(server: Server) -> None:
    """An answer does not contain the text of a special token."""
    for prompt in (STORY, HELM["prompt"], HEALTH["prompt"]):
        answer = server.process(prompt, max_new_tokens=48)
        found = [special for special in SPECIAL if special in answer["text"] or special in _joined(answer)]
        assert not found, f"{answer['text']!r} contains {found[0]}"


def tokenize_truncates(server: Server) -> None:
    """/tokenize returns at most max_length tokens with truncation, and all without."""
    ids = server.tokenize(STORY, truncation=False, max_length=3)
    assert len(ids) > 3, "truncation=false truncates"
    assert server.tokenize(STORY, truncation=True, max_length=3) == ids[:3], "max_length is ignored"
    assert server.tokenize(STORY) == ids, "truncation shortens a short text"


def decode_restores(server: Server) -> None:
    """/decode restores the text from the tokens of /tokenize, without BOS."""
    for text in (STORY, "Two  spaces, a\nnew line"):
        found = server.decode(server.tokenize(text))
        assert found == text, f"{text!r} is restored as {found!r}"


def overlong_prompt(server: Server) -> None:
    """A prompt that is too long is accepted after HELM has shortened it with /tokenize and /decode."""
    limit = server.context - 16
    ids = server.tokenize(STORY * server.context, truncation=True, max_length=limit)
    assert len(ids) == limit, f"{len(ids)} tokens of a long text with max_length={limit}"
    text = server.decode(ids)
    while len(server.tokenize(text, truncation=False)) > limit:
        text = text[:-1]
    server.process(text, max_new_tokens=16)


def refusal(server: Server) -> None:
    """A request without a prompt, or with a wrong type, is answered with status 422 and the error."""
    for path, body in (("/process", {}), ("/process", {"prompt": 5}), ("/tokenize", {}), ("/decode", {"tokens": "x"})):
        status, answer = server.send(path, body)
        assert status == 422, f"{path} answered {status} to {body}"
        detail = answer.get("detail") if isinstance(answer, dict) else None
        good = isinstance(detail, list) and detail and all({"loc", "msg", "type"} <= set(entry) for entry in detail)
        assert good, f"{path} answered {answer!r} to {body}"


def simultaneous(server: Server) -> None:
    """Simultaneous requests are answered as each alone, and /tokenize does not wait for them."""
    prompts = [STORY, HEALTH["prompt"], HELM["prompt"]]

    def text_of(prompt: str) -> str:
        return server.process(prompt, max_new_tokens=64)["text"]

    alone, copies, seconds = [text_of(prompt) for prompt in prompts], 3, 0.0
    while seconds < 0.5 and copies < 34:  # a small model is fast, but the requests must take some time
        copies = copies * 2 if seconds else copies
        with ThreadPoolExecutor(3 * copies) as pool:
            start = time.perf_counter()
            texts = list(pool.map(text_of, prompts * copies))
            seconds = time.perf_counter() - start
        assert texts == alone * copies, "simultaneous requests change each other's answers"
    for _ in range(8):  # counts answers, not seconds: a busy machine delays all equally
        with ThreadPoolExecutor(3 * copies) as pool:
            start = time.perf_counter()
            answers = [pool.submit(text_of, prompt) for prompt in prompts * copies]
            time.sleep(0.3 * seconds)
            unfinished = sum(not answer.done() for answer in answers)
            server.tokenize(STORY)
            time.sleep(0.1 * seconds)  # for answers that arrive at the same time as that of /tokenize
            at_once = sum(not answer.done() for answer in answers) > unfinished / 2
            for answer in answers:
                answer.result()
            seconds = time.perf_counter() - start  # a server may be slow the first time
        if at_once:
            return
    raise AssertionError("/tokenize waits for the requests before it")


RULES: list[Callable[[Server], None]] = [
    health_check, helm_request, null_fields, strict_json, tokens_join, log_probabilities, request_time, greedy, seed, top_p,
    top_k, candidates, max_new_tokens, echo, scoring, stop_sequences, end_of_text, tokenize_truncates, decode_restores,
    overlong_prompt, refusal, simultaneous,
]  # fmt: skip


def check(server: Server) -> dict[str, str | None]:
    """Return None for each rule that the server keeps, and the mistake for the others."""
    found: dict[str, str | None] = {}
    for rule in RULES:
        try:
            rule(server)
            found[rule.__name__] = None
        except (AssertionError, KeyError, TypeError, AttributeError, ValueError) as error:  # an answer may have any shape
            found[rule.__name__] = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    return found


def check_url(args: ChallengeCheckArgs) -> None:
    """Print each rule and its result. Raises LitError if a rule is broken, OSError if there is no server."""
    try:
        found = check(Server(args.url, args.timeout, args.context))
    except (URLError, ConnectionError, TimeoutError) as error:
        raise OSError(f"no answer from {args.url} ({error}). Start a server: python generate/serve.py --port 8080") from error
    for rule in RULES:
        broken = found[rule.__name__]
        print(f"{'ok    ' if broken is None else 'BROKEN'} {rule.__name__}: {rule.__doc__}")
        if broken is not None:
            print(f"       {broken}")
    n_broken = sum(broken is not None for broken in found.values())
    if n_broken:
        raise LitError(f"{args.url} breaks {n_broken} of {len(RULES)} rules of the protocol")
