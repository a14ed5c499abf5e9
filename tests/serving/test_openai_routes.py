"""OpenAI's own client, unmodified, against the server on the demo model."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest
import tokenizers
import torch
from serving import alone, serving, wait_until

import lit_llm
from lit_llm.args.serve import ServeArgs
from lit_llm.cli import DEMO
from lit_llm.serving import app as serving_app
from lit_llm.serving import challenge_routes, limits, openai_routes, response
from lit_llm.serving.app import make_app
from lit_llm.text.conversation import prompt_ids, question

QUESTION = "Where does Frida live?"
PROMPT = "In the village there is a"


@pytest.fixture(scope="module")
def demo():
    return lit_llm.load(DEMO / "checkpoint", device="cpu")


@pytest.fixture(scope="module")
def app(demo):
    return make_app(*demo, ServeArgs(max_queue=4, max_body_size=200_000), name="demo")


@pytest.fixture(scope="module")
def url(app):
    with serving(app) as address:
        yield address


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def ask(client, text=QUESTION, **options):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(
        **{"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 30} | options
    )


def complete(client, prompt=PROMPT, **options):
    return client.completions.create(**{"model": "demo", "prompt": prompt, "temperature": 0, "max_tokens": 30} | options)


def test_the_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "lit_llm"


def test_a_chat_is_answered_as_the_model_answers_alone(client, demo):
    ids = prompt_ids("alpaca", demo[1], question(QUESTION))
    expected = alone(demo, ids)
    answer = ask(client)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == ("stop" if expected.ended else "length")
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.usage.completion_tokens == len(expected.ids) + expected.ended
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_turn_closing_token_ends_chats_not_completions(checkpoint, tmp_path):
    """`<|im_end|>` is no EOS of this checkpoint. Its row in the head is made that of the third greedy token."""
    shutil.copytree(checkpoint, tmp_path / "m")
    file = tmp_path / "m" / "tokenizer.json"
    trained = tokenizers.Tokenizer.from_file(str(file))
    trained.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    trained.save(str(file))
    model, tokenizer = lit_llm.load(tmp_path / "m", device="cpu")
    ids, closing = prompt_ids("chatml", tokenizer, question("the red")), trained.token_to_id("<|im_end|>")
    first = alone((model, tokenizer), ids, 3).ids
    assert len({*first, closing}) == 4
    with torch.no_grad():
        rows = model.lm_head.weight[[first[2], closing]]
        model.lm_head.weight[[closing, first[2]]] = rows
    with serving(make_app(model, tokenizer, ServeArgs(), name="demo", style="chatml")) as url:
        messages = [{"role": "user", "content": "the red"}]
        _, chat = send(url, request_of(prompt=None, messages=messages, temperature=0, max_tokens=9), "/v1/chat/completions")
        _, raw = send(url, request_of(prompt=ids, temperature=0, max_tokens=9))
    assert chat["usage"]["completion_tokens"] == 3
    assert chat["choices"][0]["finish_reason"] == "stop"
    assert chat["choices"][0]["message"]["content"] == tokenizer.decode(first[:2])
    assert raw["usage"]["completion_tokens"] == 9


def test_system_text_and_history_reach_the_prompt(client, demo):
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Where does "}, {"type": "text", "text": "Frida live?"}]},
        {"role": "assistant", "content": " By the pond."},
        {"role": "user", "content": "And Igor?"},
    ]
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "By the pond."},
        {"role": "user", "content": "And Igor?"},
    ]
    expected = alone(demo, prompt_ids("alpaca", demo[1], turns), 12)
    assert ask(client, messages=messages, max_tokens=12).choices[0].message.content == expected.text


def test_messages_of_one_role_in_a_row_are_joined(client):
    def say(*turns):
        answer = ask(client, messages=[{"role": role, "content": content} for role, content in turns])
        return answer.choices[0].message.content, answer.usage.prompt_tokens

    joined = say(("system", "Be short.\n\nBe kind."), ("user", f"Hello.\n\n{QUESTION}"))
    assert say(("system", "Be short."), ("developer", "Be kind."), ("user", "Hello."), ("user", QUESTION)) == joined


def test_a_streamed_answer_is_the_whole_one_in_pieces(client):
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    *parts, usage = chunks
    assert len(parts) > 5
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert [p.choices[0].finish_reason for p in parts if p.choices[0].finish_reason] == [whole.choices[0].finish_reason]
    assert usage.choices == []
    assert usage.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("as_list", [False, True])
def test_an_answer_ends_before_a_stop_sequence(client, as_list):
    whole = complete(client).choices[0].text
    stop = whole[9:13]
    stops = ["never there", stop] if as_list else stop
    for text in (
        complete(client, stop=stops).choices[0].text,
        "".join(part.choices[0].text for part in complete(client, stop=stops, stream=True)),
    ):
        assert text == whole[: whole.index(stop)]
    assert complete(client, stop=stops).choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_chat_are_the_model_s(client, demo, stream):
    model, tokenizer = demo
    answer = ask(client, logprobs=True, top_logprobs=3, max_tokens=12, stream=stream)
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
        text = "".join(choice.delta.content or "" for choice in choices)
    else:
        tokens, text = answer.choices[0].logprobs.content, answer.choices[0].message.content
    assert "".join(token.token for token in tokens) == text
    ids = prompt_ids("alpaca", tokenizer, question(QUESTION))
    new = alone(demo, ids, 12).ids
    with torch.no_grad():
        log_probs = model(torch.tensor([ids + new]))[0].log_softmax(-1)
    assert len(tokens) == len(new)
    for i, token in enumerate(tokens):
        at = log_probs[len(ids) - 1 + i]
        assert token.logprob == pytest.approx(at[new[i]].item(), abs=1e-4)
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(at.topk(3).values.tolist(), abs=1e-4)
        assert bytes(token.bytes).decode() == token.token
        assert token.top_logprobs[0].bytes == token.bytes  # also of the first, which has lost its leading space


@pytest.mark.parametrize("stream", [False, True])
def test_an_echoed_prompt_is_scored(client, demo, stream):
    """What lm-eval's `local-completions` asks: token ids, echo, log-probabilities."""
    model, tokenizer = demo
    ids = tokenizer.encode(PROMPT)
    answer = complete(client, [[5], ids], echo=True, logprobs=1, max_tokens=2, n=2, stream=stream)
    found = [choice for chunk in answer for choice in chunk.choices] if stream else answer.choices
    parts = [[choice for choice in found if choice.index == i] for i in range(4)]
    choices = parts[2]
    all_values = [[x for choice in of_one for x in choice.logprobs.token_logprobs] for of_one in parts]
    for one, other in ((0, 1), (2, 3)):
        assert all_values[one][1:] == pytest.approx(all_values[other][1:], abs=1e-5)
    assert list(map(len, all_values)) == [3, 3, len(ids) + 2, len(ids) + 2]
    text = "".join(choice.text for choice in choices)
    values, tokens, offsets, tops = (
        [x for choice in choices for x in getattr(choice.logprobs, name)]
        for name in ("token_logprobs", "tokens", "text_offset", "top_logprobs")
    )
    assert [list(top) for top in tops[-2:]] == [[token] for token in tokens[-2:]]  # greedy
    assert tops[0] is None
    assert text.startswith(PROMPT)
    assert "".join(tokens) == text
    assert [text[o : o + len(t)] for o, t in zip(offsets, tokens, strict=True)] == tokens
    ids = ids + alone(demo, ids, 2).ids
    with torch.no_grad():
        log_probs = model(torch.tensor([ids]))[0].log_softmax(-1)
    assert values[0] is None
    assert values[1:] == pytest.approx([log_probs[i, ids[i + 1]].item() for i in range(len(ids) - 1)], abs=1e-4)


def test_streamed_text_offsets_equal_those_of_the_whole_answer(client):
    """What may be the beginning of a stop sequence is held back with its token, whose first characters are out."""
    whole = complete(client, logprobs=0).choices[0].logprobs
    inner = next(token for token in whole.tokens[3:] if len(token) > 3)
    parts = list(complete(client, logprobs=0, stop=inner[1:] + "\x01", stream=True))
    assert "".join(part.choices[0].text for part in parts) == "".join(whole.tokens)
    for name in ("tokens", "text_offset"):
        assert [x for part in parts for x in getattr(part.choices[0].logprobs, name)] == getattr(whole, name)


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_are_written_once_and_not_in_the_event_loop(client, url, monkeypatch, stream):
    """However many answers there are to a prompt. The event loop answers others meanwhile."""
    threads = []

    def recorded(*arguments):
        threads.append(threading.current_thread().name)
        return response.prompt_tokens(*arguments)

    for routes in (openai_routes, challenge_routes):
        monkeypatch.setattr(routes, "prompt_tokens", recorded)
    found = complete(client, [PROMPT, QUESTION], echo=True, logprobs=2, n=3, max_tokens=0, stream=stream)
    assert len(list(found) if stream else found.choices) == 8 if stream else 6
    assert send(url, b'{"prompt": "a", "echo_prompt": true, "max_new_tokens": 1}', "/process")[0] == 200
    assert [name.partition("_")[0] for name in threads] == ["asyncio"] * 3


def test_too_many_log_probabilities_are_refused(url, monkeypatch):
    monkeypatch.setattr(limits, "MAX_LOG_PROBS", 1000)
    scored, messages = {"logprobs": 4, "max_tokens": 20}, [{"role": "user", "content": "a"}]
    assert send(url, request_of(**scored, n=10))[0] == 200
    status, answer = send(url, request_of(**scored, n=10, echo=True))
    assert (status, answer["error"]["param"]) == (400, "logprobs")
    assert answer["error"]["message"] == "1100 log-probabilities are above this server's limit of 1000"
    chat = request_of(prompt=None, messages=messages, logprobs=True, top_logprobs=9, max_tokens=101)
    status, answer = send(url, chat, "/v1/chat/completions")
    assert (status, answer["error"]["param"]) == (400, "top_logprobs")
    status, answer = send(url, b'{"prompt": "a", "max_new_tokens": 50, "top_k_per_token": 20}', "/process")
    assert (status, answer["detail"][0]["loc"]) == (422, ["body", "top_k_per_token"])


def test_samples_of_several_prompts_equal_those_made_one_by_one(client, demo):
    """n = 3 answers to two prompts with a seed: answer i to a prompt is sampled with seed + i, as if alone."""
    prompts = [PROMPT, "Once upon a time"]
    answer = complete(client, prompts, n=3, seed=5, temperature=1.0, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3, 4, 5]
    expected = [alone(demo, demo[1].encode(prompt), 8, temperature=1.0, seed=5 + i).ids for prompt in prompts for i in range(3)]
    for choice, prompt, ids in zip(answer.choices, [p for p in prompts for _ in range(3)], expected, strict=True):
        before = demo[1].encode(prompt)
        assert prompt + choice.text == demo[1].decode(before + ids)
    assert len({choice.text for choice in answer.choices}) == 6
    assert answer.usage.prompt_tokens == sum(len(demo[1].encode(prompt)) for prompt in prompts)


def test_n_chats_are_streamed_side_by_side(client):
    whole = ask(client, n=3, seed=1, temperature=1.0)
    texts = ["", "", ""]
    for chunk in ask(client, n=3, seed=1, temperature=1.0, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_without_a_seed_samples_differ(client):
    assert len({complete(client, temperature=1.5).choices[0].text for _ in range(4)}) > 1


def test_top_p_0_and_top_k_1_take_the_likeliest_token(client):
    greedy = complete(client).choices[0].text
    assert complete(client, temperature=1.5, top_p=0).choices[0].text == greedy
    assert complete(client, temperature=1.5, extra_body={"top_k": 1}).choices[0].text == greedy
    assert complete(client, extra_body={"repetition_penalty": 1.5}).choices[0].text != greedy


def test_what_asks_for_nothing_is_accepted(client):
    expected = ask(client).choices[0].message.content
    answer = ask(client, user="me", frequency_penalty=0, logit_bias={}, response_format={"type": "text"}, tool_choice="none")
    assert answer.choices[0].message.content == expected
    answer = ask(
        client, logprobs=False, top_logprobs=0, reasoning_effort="none", metadata={"a": "b"}, store=True, service_tier="auto",
        extra_body={"echo": False, "min_tokens": 0, "ignore_eos": None, "unknown": None},
    )  # fmt: skip
    assert answer.choices[0].message.content == expected
    parts = list(ask(client, stream=True, stream_options={"include_usage": None}))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected


@pytest.mark.parametrize(
    "field", [{"max_completion_tokens": 2}, {"min_tokens": 5}, {"ignore_eos": True}, {"messages": []}, {"unknown": 0}]
)
def test_unknown_fields_of_completions_are_refused_by_name(client, field):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, extra_body=field)
    assert caught.value.body["param"] == next(iter(field))
    assert caught.value.body["code"] == "unsupported_parameter"


def asked(content, role="user"):
    return {"messages": [{"role": role, "content": content}]}


TOO_LONG = "context_length_exceeded"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
REFUSED = {
    "unknown model": ({"model": "gpt-4"}, 404, "model", "model_not_found"),
    "tools": ({"tools": TOOLS}, 400, "tools", "unsupported_parameter"),
    "json": ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_parameter"),
    "logit bias": ({"logit_bias": {"5": 100}}, 400, "logit_bias", "unsupported_parameter"),
    "presence penalty": ({"presence_penalty": 0.5}, 400, "presence_penalty", "unsupported_parameter"),
    "echo": ({"extra_body": {"echo": True}}, 400, "echo", "unsupported_parameter"),
    "reasoning": ({"reasoning_effort": "low"}, 400, "reasoning_effort", "unsupported_parameter"),
    "negative temperature": ({"temperature": -1}, 400, "temperature", "invalid_value"),
    "tiny penalty": ({"extra_body": {"repetition_penalty": 1e-38}}, 400, "repetition_penalty", "invalid_value"),
    "top_p": ({"top_p": 1.5}, 400, "top_p", "invalid_value"),
    "n": ({"n": 1000}, 400, "n", "invalid_value"),
    "a long prompt": (asked("the red cat " * 500), 400, "messages", TOO_LONG),
    "many tokens": ({"max_tokens": 250}, 400, "max_tokens", TOO_LONG),
    "very many tokens": ({"max_tokens": 10**9}, 400, "max_tokens", TOO_LONG),
    "two limits": ({"max_completion_tokens": 7}, 400, "max_tokens", None),
    "10,000 stops": ({"stop": [str(i) for i in range(10_000)]}, 400, "stop", "invalid_value"),
    "a long stop": ({"stop": "a" * 300}, 400, "stop", "invalid_value"),
    "no messages": ({"messages": []}, 400, "messages", "invalid_value"),
    "a message without content": (asked(None), 400, "messages.0", "invalid_value"),
    "a call of a tool": (
        {"messages": [*asked("a")["messages"], {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        400,
        "messages.1.tool_calls",
        "unsupported_parameter",
    ),
    "2,049 messages": ({"messages": asked("a")["messages"] * 2049}, 400, "messages", "invalid_value"),
    "both continued and opened": (
        {"extra_body": {"continue_final_message": True, "add_generation_prompt": True}},
        400,
        "continue_final_message",
        "invalid_value",
    ),
    "messages for the template": (
        {"extra_body": {"chat_template_kwargs": {"messages": []}}},
        400,
        "chat_template_kwargs",
        "invalid_value",
    ),
    "a tool's turn": (asked("5", "tool"), 400, "messages.0.role", "invalid_value"),
    "an image": (asked([{"type": "image_url"}]), 400, "messages.0.content.type", "invalid_value"),
    "top_logprobs": ({"top_logprobs": 3}, 400, "top_logprobs", "invalid_value"),
    "stream_options": ({"stream_options": {"include_usage": True}}, 400, "stream_options", "invalid_value"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unservable_requests_get_an_api_error(client, name):
    options, status, field, code = REFUSED[name]
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, **options)
    assert caught.value.status_code == status
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.body["param"] == field
    assert caught.value.body["code"] == code
    assert isinstance(caught.value, openai.NotFoundError if status == 404 else openai.BadRequestError)


def send(url, body, path="/v1/completions", **headers):
    """Status and parsed body of the answer to bytes."""
    request = Request(url + path, body, {"Content-Type": "application/json", **headers})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        return error.code, json.loads(error.read())


def request_of(**fields):
    return json.dumps({"model": "demo", "prompt": "a", **fields}).encode()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (request_of(temperature=float("nan")), 400, "invalid_value"),
        (request_of(temperature=float("inf")), 400, "invalid_value"),
        (request_of(prompt="\ud800"), 400, "invalid_value"),
        (request_of(prompt=[1, 10**9]), 400, "invalid_value"),
        (request_of(prompt=[]), 400, "invalid_value"),
        (request_of(prompt={"a": 1}), 400, "invalid_value"),
        (request_of().replace(b'"a"', b'"\xff\xfe"'), 400, None),
        (b'{"model": "demo", "prompt": ', 400, "invalid_value"),
        (b"[" * 100_000, 400, None),
        (b"5", 400, "invalid_value"),
        (b"", 400, "invalid_value"),
        (b" " * 300_000 + request_of(), 413, "request_too_large"),
        (b"a" * 50_000_000, 413, "request_too_large"),
    ],
    ids="nan infinity surrogate token empty object utf-8 cut nested number nothing spaces 50MB".split(),
)
def test_malformed_bodies_get_an_api_error(url, body, status, code):
    found, answer = send(url, body)
    assert found == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["code"] == code
    assert answer["error"]["param"] in (None, "temperature", "prompt")
    assert answer["error"]["message"]
    assert send(url, request_of(max_tokens=1))[0] == 200


def test_chunked_bodies_are_refused_once_they_are_too_long(url):
    import http.client

    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.request(
        "POST", "/v1/completions", iter([b"a" * 100_000] * 20), {"Content-Type": "application/json"}, encode_chunked=True
    )
    assert connection.getresponse().status == 413


def test_paths_and_methods_that_do_not_exist_are_refused(url):
    assert send(url, b"{}", "/v1/images/generations")[0] == 404
    assert send(url, b"{}", "/v1/images/generations")[1]["error"]["code"] == "not_found"
    assert send(url, b"{}", "/v1/models")[0] == 405


def test_an_empty_prompt_needs_a_bos(demo, checkpoint):
    """The demo's tokenizer has one; without it the prompt is refused."""
    model, tokenizer = lit_llm.load(checkpoint)
    tokenizer.bos_id, tokenizer.adds_bos = None, False
    with serving(make_app(model, tokenizer, ServeArgs(), name="demo")) as url:
        status, answer = send(url, request_of(prompt=""))
        assert status == 400
        assert answer["error"]["param"] == "prompt"
        assert "no BOS" in answer["error"]["message"]
        assert send(url, b'{"prompt": ""}', "/process")[0] == 422


def test_a_cache_larger_than_memory_is_refused_at_the_start(demo, monkeypatch, capsys):
    config = demo[0].config
    n_bytes = 2 * config.n_layer * 8 * config.n_query_groups * 100 * config.head_size * 4
    monkeypatch.setattr(serving_app, "available_bytes", lambda device: n_bytes - 1)
    with pytest.raises(ValueError, match=r"keys and values of 8 requests of 100 tokens take .* Lower `max_length`"):
        make_app(*demo, ServeArgs(max_length=100))
    app = make_app(*demo, ServeArgs(max_length=100, kv_cache="int8"))
    app.state.engine.close(0)
    monkeypatch.setattr(serving_app, "available_bytes", lambda device: n_bytes)
    app = make_app(*demo, ServeArgs(max_length=100))
    app.state.engine.close(0)
    assert f"take {n_bytes / 1e9:.2f} GB" in capsys.readouterr().err


def test_requests_beyond_the_queue_are_refused_others_answered(client, app, demo):
    """8 run and 4 wait. Each further one is told so at once, by 429."""
    answers, refused = [], []

    def one(i):
        try:
            answers.append(complete(client, max_tokens=200, logprobs=0).choices[0].text)
        except openai.RateLimitError as error:
            refused.append(error.body["code"])

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(one, range(40)))
    assert set(refused) == {"queue_full"}
    assert len(answers) >= 12
    assert set(answers) == {complete(client, max_tokens=200).choices[0].text}


def test_too_many_answers_are_refused_before_any_is_prepared(app, url, monkeypatch):
    monkeypatch.setattr(app.state.engine.tokenizer, "encode", None)
    status, answer = send(url, request_of(prompt=["a"] * 7, n=2, max_tokens=1))
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, "prompt", "invalid_value")
    assert answer["error"]["message"] == "14 answers are more than the 12 that this server runs and queues"
    messages = [{"role": "user", "content": "a"}]
    status, answer = send(url, request_of(prompt=None, messages=messages, n=16), "/v1/chat/completions")
    assert (status, answer["error"]["param"]) == (400, "n")


def test_a_key_is_asked_for(demo):
    with serving(make_app(*demo, ServeArgs(api_key="sesame"), name="demo")) as url:
        clients = {key: openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) for key in ("sesame", "Sesame", "x")}
        assert complete(clients["sesame"], max_tokens=1).choices[0].text
        for key in ("Sesame", "x"):
            with pytest.raises(openai.AuthenticationError) as caught:
                complete(clients[key], max_tokens=1)
            assert caught.value.body["code"] == "invalid_api_key"
        assert send(url, b'{"prompt": "a"}', "/process")[0] == 401
        assert urlopen(f"{url}/health", timeout=10).status == 200
        assert urlopen(url, timeout=10).status == 200


def test_a_client_that_leaves_frees_its_place(client, app, demo):
    """A stream that is closed, and a whole answer that is not waited for."""
    engine = app.state.engine
    wait_until(lambda: engine.n_unfinished() == 0)  # what another test has left
    stream = complete(client, max_tokens=200, stream=True, temperature=1.0, seed=1)
    next(iter(stream))
    assert engine.n_unfinished() == 1
    stream.close()
    wait_until(lambda: engine.n_unfinished() == 0)
    with pytest.raises(openai.APITimeoutError):
        complete(client, max_tokens=240, prompt=["a"] * 8, n=1, temperature=1.0, timeout=0.05)
    wait_until(lambda: engine.n_unfinished() == 0)


def test_an_answer_that_takes_too_long_is_ended(demo):
    with serving(make_app(*demo, ServeArgs(timeout=0.05), name="demo")) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.InternalServerError) as caught:
            complete(client, max_tokens=240, prompt=["a"] * 8)
        assert caught.value.status_code == 503
        assert caught.value.body["code"] == "timeout"
        with pytest.raises(openai.APIError, match="took longer"):
            list(complete(client, max_tokens=240, prompt=["a"] * 8, stream=True))


def test_a_slow_reader_does_not_hold_up_the_others(client, demo):
    """While a stream is not read at all, other requests are answered."""
    stream = complete(client, max_tokens=200, stream=True, temperature=1.0, seed=2)
    next(iter(stream))
    done = threading.Event()

    def other():
        complete(client)
        done.set()

    threading.Thread(target=other, daemon=True).start()
    assert done.wait(20)
    assert len(list(stream)) > 10
