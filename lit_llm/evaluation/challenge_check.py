"""Does a server keep the protocol of the NeurIPS 2023 LLM Efficiency Challenge? Each rule is a function that asks it.

Nothing here knows how the server is made: it may run any model.
"""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from lit_llm.args.evaluate import ChallengeCheckArgs

HEALTH = {"prompt": "The capital of France is "}  # all that the organisers' health check sends
# What HELM sends (crfm-helm, helm.clients.http_model_client), with a temperature of 1e-7 for 0.
HELM = {
    "prompt": "Question: Which planet is the largest?\nA. Mars\nB. Jupiter\nAnswer:", "temperature": 1e-7,
    "num_return_sequences": 1, "max_new_tokens": 1, "top_p": 1, "echo_prompt": False, "top_k_per_token": 1,
    "stop_sequences": ["\n"],
}  # fmt: skip
STORY = "Once upon a time, there was a little girl"
SPECIAL = ("<s>", "</s>", "<|endoftext|>", "<eos>", "<|im_end|>", "<|eot_id|>")

Json = dict[str, Any]


class Server:
    def __init__(self, url: str, timeout: float, context: int) -> None:
        self.url, self.timeout, self.context = url.rstrip("/"), timeout, context

    def send(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and parsed body of the answer. Raises AssertionError if that is no strict JSON."""
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
    """The health check, with a prompt alone, is answered by text, tokens, logprob and request_time."""
    answer = server.ask("/process", HEALTH)
    kinds = {"text": str, "tokens": list, "logprob": int | float, "request_time": int | float}
    for name, kind in kinds.items():
        assert isinstance(answer.get(name), kind), f"{name} is {answer.get(name)!r}"
    for token in answer["tokens"]:
        assert isinstance(token.get("text"), str), f"a token's text is {token.get('text')!r}"
        assert isinstance(token.get("logprob"), int | float), f"a token's logprob is {token.get('logprob')!r}"
        top = token.get("top_logprob")
        assert isinstance(top, dict) and all(isinstance(v, int | float) for v in top.values()), f"top_logprob is {top!r}"
    assert len(answer["tokens"]) <= 50, "more than 50 new tokens, which is the default"


def helm_request(server: Server) -> None:
    """HELM's request, with fields that the protocol does not list, is answered."""
    server.ask("/process", HELM)


def null_fields(server: Server) -> None:
    """seed and echo_prompt may be null."""
    server.process(max_new_tokens=2, seed=None, echo_prompt=None)


def strict_json(server: Server) -> None:
    """No NaN and no infinity, whatever the temperature."""
    for temperature in (1e-7, 0.0, 1e-5, 2.0):
        server.process(max_new_tokens=4, temperature=temperature, seed=1, echo_prompt=True)


def tokens_join(server: Server) -> None:
    """The texts of the tokens, joined, are the text."""
    variants: list[Json] = [{}, {"echo_prompt": True}, {"temperature": 1.5, "seed": 3}]
    for options in variants:
        answer = server.process(max_new_tokens=16, **options)
        assert _joined(answer) == answer["text"], f"{_joined(answer)!r} is not {answer['text']!r}"


def log_probabilities(server: Server) -> None:
    """Log-probabilities are at most 0, and logprob is their sum."""
    answer = server.process(max_new_tokens=8, echo_prompt=True)
    values = [token["logprob"] for token in answer["tokens"]]
    assert all(value <= 1e-4 for value in values), f"{max(values)} is above 0"
    top = [value for token in answer["tokens"] for value in token["top_logprob"].values()]
    assert all(value <= 1e-4 for value in top), "top_logprob holds a value above 0: a probability?"
    assert abs(sum(values) - answer["logprob"]) < 1e-3 * max(1, abs(sum(values))), f"{answer['logprob']} is not {sum(values)}"


def request_time(server: Server) -> None:
    """request_time is in seconds, and not longer than the answer took."""
    start = time.perf_counter()
    answers = [
        server.process(max_new_tokens=4),
        server.ask("/tokenize", {"text": STORY}),
        server.ask("/decode", {"tokens": [5]}),
    ]
    elapsed = time.perf_counter() - start
    for answer in answers:
        assert 0 < answer["request_time"] <= elapsed, f"{answer['request_time']} for what took at most {elapsed:.3f} s"


def greedy(server: Server) -> None:
    """A temperature of at most 1e-5 takes the likeliest token, each time."""
    answers = [server.process(max_new_tokens=12, temperature=t, seed=s) for t, s in ((1e-7, 1), (1e-5, 2), (0.0, None))]
    assert len({answer["text"] for answer in answers}) == 1, "the same request was answered differently"
    for token in answers[0]["tokens"]:
        best = max(token["top_logprob"].values(), default=token["logprob"])
        assert token["logprob"] >= best - 1e-3, f"{token['text']!r} was taken, though another was likelier"


def seed(server: Server) -> None:
    """With a seed, a sample repeats; without one, samples differ."""
    one, two = (server.process(max_new_tokens=16, temperature=1.0, seed=7)["text"] for _ in range(2))
    assert one == two, "the same seed gave two texts"
    others = {server.process(max_new_tokens=24, temperature=1.5)["text"] for _ in range(4)}
    assert len(others) > 1, "without a seed, four samples are the same"


def top_p(server: Server) -> None:
    """A tiny top_p leaves the likeliest token alone."""
    found = server.process(max_new_tokens=12, temperature=1.5, top_p=1e-6, seed=5)["text"]
    assert found == server.process(max_new_tokens=12)["text"], "top_p is ignored"


def top_k(server: Server) -> None:
    """top_k 1 leaves the likeliest token alone."""
    found = server.process(max_new_tokens=12, temperature=1.5, top_k=1, seed=5)["text"]
    assert found == server.process(max_new_tokens=12)["text"], "top_k is ignored"


def candidates(server: Server) -> None:
    """top_k_per_token asks for candidates to report, and cuts off no sampling."""
    for token in server.process(max_new_tokens=4, top_k_per_token=5)["tokens"]:
        assert 2 <= len(token["top_logprob"]) <= 5, f"{len(token['top_logprob'])} candidates where 5 were asked for"
    samples = {server.process(max_new_tokens=24, temperature=1.5, top_k_per_token=1)["text"] for _ in range(4)}
    assert len(samples) > 1, "top_k_per_token 1 made sampling greedy"


def max_new_tokens(server: Server) -> None:
    """At most max_new_tokens are made; 0 makes none."""
    for limit in (0, 1, 7):
        n = len(server.process(max_new_tokens=limit)["tokens"])
        assert n <= limit, f"{n} tokens where {limit} were allowed"


def echo(server: Server) -> None:
    """With echo_prompt, text and tokens begin with the prompt, and the continuation is the same as without."""
    plain, echoed = (server.process(max_new_tokens=8, echo_prompt=e) for e in (False, True))
    assert echoed["text"] == STORY + plain["text"], f"{echoed['text']!r} is not the prompt and {plain['text']!r}"
    n_prompt = len(echoed["tokens"]) - len(plain["tokens"])
    assert "".join(token["text"] for token in echoed["tokens"][:n_prompt]) == STORY, "the first tokens are not the prompt"
    assert echoed["tokens"][0]["logprob"] == 0.0, "nothing precedes the first token: its logprob must be 0.0"


def scoring(server: Server) -> None:
    """echo_prompt without new tokens scores the prompt: token i carries log p(t_i | t_<i)."""
    answer = server.process(max_new_tokens=0, echo_prompt=True)
    assert answer["text"] == STORY, f"the text is {answer['text']!r}"
    ids, tokens = server.tokenize(STORY), answer["tokens"]
    assert len(tokens) == len(ids), f"{len(tokens)} tokens, where /tokenize makes {len(ids)}"
    for i in range(len(ids), 1, -1):
        prefix = server.decode(ids[:i])
        made = server.process(prefix, max_new_tokens=1)["tokens"]
        text = made[0]["text"] if made else ""
        longer = server.tokenize(prefix + text)
        # A text of one character may be that of two tokens, of which one stands for a byte.
        if len(text.strip()) > 1 and len(longer) == i + 1 and longer[:i] == ids[:i]:
            found = server.process(prefix + text, max_new_tokens=0, echo_prompt=True)["tokens"][-1]
            difference = abs(found["logprob"] - made[0]["logprob"])
            assert difference < 1e-2, f"{text!r} has {found['logprob']} in a prompt, but was made with {made[0]['logprob']}"
            return
    raise AssertionError("no token that the server makes could be given back to it in a prompt")


def stop_sequences(server: Server) -> None:
    """Text and tokens end before the earliest stop sequence."""
    whole = server.process(max_new_tokens=24)["text"]
    for length in (1, 3):
        stop = whole[len(whole) // 2 :][:length]
        if not stop:
            continue
        answer = server.process(max_new_tokens=24, stop_sequences=["@@never@@", stop])
        expected = whole[: whole.index(stop)]
        assert answer["text"] == expected, f"with stop {stop!r} the text is {answer['text']!r} instead of {expected!r}"
        assert _joined(answer) == expected, f"with stop {stop!r} the tokens are {_joined(answer)!r}"


def end_of_text(server: Server) -> None:
    """Texts of special tokens do not stand in an answer."""
    for prompt in (STORY, HELM["prompt"], HEALTH["prompt"]):
        answer = server.process(prompt, max_new_tokens=48)
        found = [special for special in SPECIAL if special in answer["text"] or special in _joined(answer)]
        assert not found, f"{found[0]} stands in {answer['text']!r}"


def tokenize_truncates(server: Server) -> None:
    """/tokenize keeps max_length tokens if truncation is on, and all if it is off."""
    ids = server.tokenize(STORY, truncation=False, max_length=3)
    assert len(ids) > 3, "truncation=false truncates"
    assert server.tokenize(STORY, truncation=True, max_length=3) == ids[:3], "max_length is ignored"
    assert server.tokenize(STORY) == ids, "truncation cuts a short text"


def decode_restores(server: Server) -> None:
    """/decode turns what /tokenize made into the text again, without BOS."""
    for text in (STORY, "Two  spaces, a\nnew line"):
        found = server.decode(server.tokenize(text))
        assert found == text, f"{text!r} became {found!r}"


def overlong_prompt(server: Server) -> None:
    """HELM's way with a prompt that is too long: /tokenize, /decode, /process."""
    limit = server.context - 16
    ids = server.tokenize(STORY * server.context, truncation=True, max_length=limit)
    assert len(ids) == limit, f"{len(ids)} tokens of a text that has more than max_length={limit}"
    text = server.decode(ids)
    while len(server.tokenize(text, truncation=False)) > limit:
        text = text[:-1]
    server.process(text, max_new_tokens=16)


def refusal(server: Server) -> None:
    """A request without a prompt, or with a wrong type, is answered by 422 and what is wrong."""
    for path, body in (("/process", {}), ("/process", {"prompt": 5}), ("/tokenize", {}), ("/decode", {"tokens": "x"})):
        status, answer = server.send(path, body)
        assert status == 422, f"{path} answered {status} to {body}"
        detail = answer.get("detail") if isinstance(answer, dict) else None
        good = isinstance(detail, list) and detail and all({"loc", "msg", "type"} <= set(entry) for entry in detail)
        assert good, f"{path} answered {answer!r} to {body}"


def simultaneous(server: Server) -> None:
    """Several requests at once are all answered as if alone, and /tokenize does not wait for them."""
    prompts = [STORY, HEALTH["prompt"], HELM["prompt"]]
    alone = [server.process(prompt, max_new_tokens=64)["text"] for prompt in prompts]

    def ask(prompt: str) -> str:
        return server.process(prompt, max_new_tokens=64)["text"]

    asked, seconds = prompts * 3, 0.0
    while seconds < 0.5 and len(asked) < 100:  # of a small model: there must be time to wait for
        asked = asked * 2 if seconds else asked
        with ThreadPoolExecutor(len(asked)) as pool:
            start = time.perf_counter()
            texts = list(pool.map(ask, asked))
            seconds = time.perf_counter() - start
        assert texts == [alone[prompts.index(prompt)] for prompt in asked], "requests at a time change one another's answers"
    for _ in range(8):  # answers counted, not seconds: a busy machine delays all alike
        with ThreadPoolExecutor(len(asked)) as pool:
            start = time.perf_counter()
            together = [pool.submit(ask, prompt) for prompt in asked]
            time.sleep(0.3 * seconds)
            missing = sum(not answer.done() for answer in together)
            server.tokenize(STORY)
            time.sleep(0.1 * seconds)  # for answers that came at the same time as that of /tokenize
            free = sum(not answer.done() for answer in together) > missing / 2
            for answer in together:
                answer.result()
            seconds = time.perf_counter() - start  # the first time a server may be slow
        if free:
            return
    raise AssertionError("/tokenize waited for the requests before it")


RULES: list[Callable[[Server], None]] = [
    health_check, helm_request, null_fields, strict_json, tokens_join, log_probabilities, request_time, greedy, seed, top_p,
    top_k, candidates, max_new_tokens, echo, scoring, stop_sequences, end_of_text, tokenize_truncates, decode_restores,
    overlong_prompt, refusal, simultaneous,
]  # fmt: skip


def check(server: Server) -> dict[str, str | None]:
    """For each rule None, or how the server breaks it."""
    found: dict[str, str | None] = {}
    for rule in RULES:
        try:
            rule(server)
            found[rule.__name__] = None
        except (AssertionError, KeyError, TypeError, AttributeError, ValueError) as error:  # whatever the answer looks like
            found[rule.__name__] = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    return found


def check_url(args: ChallengeCheckArgs) -> None:
    """Print every rule and whether it holds. Raises ValueError if one does not, OSError if there is no server."""
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
        raise ValueError(f"{args.url} breaks {n_broken} of {len(RULES)} rules of the protocol")
