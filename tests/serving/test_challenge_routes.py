"""The server over real HTTP on the loopback address, whole and with each rule of the protocol broken once."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from urllib.request import Request, urlopen

import pytest
import torch

pytest.importorskip("fastapi")
from conftest import REPOSITORY

import lit_llm
from lit_llm.args.evaluate import ChallengeCheckArgs
from lit_llm.args.serve import ServeArgs
from lit_llm.evaluation.challenge_check import RULES, STORY, Server, check, check_url
from lit_llm.serving.app import make_app
from lit_llm.text.stream import TextStream, pieces


class Breakable:
    """An ASGI application that changes requests and answers on their way, as `change` says."""

    def __init__(self, app):
        self.app, self.change, self.turn = app, None, asyncio.Lock()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or self.change is None or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        if not self.change.blocks:
            return await self.answer(scope, receive, send)
        async with self.turn:  # as where a handler blocks the event loop
            return await self.answer(scope, receive, send)

    async def answer(self, scope, receive, send):
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        path, request = scope["path"], json.loads(body)
        sent = self.change.request(path, dict(request))
        answered, unread = [], [{"type": "http.request", "body": json.dumps(sent).encode(), "more_body": False}]

        async def replay():
            return unread.pop() if unread else await receive()

        async def collect(message):
            answered.append(message)

        scope = {**scope, "headers": [h for h in scope["headers"] if h[0] != b"content-length"]}
        await self.app(scope, replay, collect)
        status = answered[0]["status"]
        text = b"".join(m.get("body", b"") for m in answered[1:])
        status, answer = self.change.answer(path, request, status, json.loads(text))
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


class Change:
    """What a broken server does otherwise."""

    def __init__(self, request=lambda path, body: body, answer=lambda path, sent, status, body: (status, body), blocks=False):
        self.request, self.answer, self.blocks = request, answer, blocks


def on_process(function):
    """Changes good answers of /process in place."""

    def answer(path, sent, status, body):
        if path == "/process" and status == 200:
            function(sent, body)
        return status, body

    return Change(answer=answer)


def without(*names):
    return Change(request=lambda path, body: {k: v for k, v in body.items() if k not in names})


def shift_scores(sent, body):
    values = [t["logprob"] for t in body["tokens"]]
    if sent.get("echo_prompt") and values:
        for token, value in zip(body["tokens"][1:], [*values[2:], values[-1] - 1], strict=True):
            token["logprob"] = value
        body["logprob"] = sum(t["logprob"] for t in body["tokens"])


def as_probabilities(sent, body):
    for token in body["tokens"]:
        token["top_logprob"] = {k: 2.718281828**v for k, v in token["top_logprob"].items()}


def refuse_unknown(path, sent, status, body):
    return (422, {"detail": []}) if "num_return_sequences" in sent else (status, body)


def refuse_null(path, sent, status, body):
    return (422, {"detail": []}) if None in sent.values() else (status, body)


def add_eos(sent, body):
    body["text"] += "</s>"
    body["tokens"].append({"text": "</s>", "logprob": 0.0, "top_logprob": {}})


def cut_tokens_only(sent, body):
    if sent.get("stop_sequences") and body["tokens"]:
        body["tokens"][-1]["text"] += sent["stop_sequences"][-1]
        body["text"] += sent["stop_sequences"][-1]


def use_as_cut_off(path, body):
    return {**body, "top_k": 1} if body.get("top_k_per_token") == 1 else body


def ignore_limit(path, body):
    return {**body, "max_new_tokens": 9} if body.get("max_new_tokens") in (0, 1, 7) else body


def decode_bos(path, sent, status, body):
    return status, {**body, "text": "<s>" + body["text"]} if path == "/decode" and status == 200 else body


def refuse_long(path, sent, status, body):
    long = len(str(sent.get("prompt", ""))) > 150
    return (422, {"detail": []}) if long else (status, body)


BROKEN = {
    "health_check": on_process(lambda sent, body: body.pop("request_time")),
    "helm_request": Change(answer=refuse_unknown),
    "null_fields": Change(answer=refuse_null),
    "strict_json": on_process(lambda sent, body: body.update(logprob=float("nan"))),
    "tokens_join": on_process(lambda sent, body: [t.update(text=t["text"].strip()) for t in body["tokens"]]),
    "log_probabilities": on_process(as_probabilities),
    "request_time": on_process(lambda sent, body: body.update(request_time=50256)),
    "greedy": Change(request=lambda path, body: {**body, "temperature": 3.0} if "temperature" in body else body),
    "seed": without("seed"),
    "top_p": without("top_p"),
    "top_k": without("top_k"),
    "candidates": Change(request=use_as_cut_off),
    "max_new_tokens": Change(request=ignore_limit),
    "echo": without("echo_prompt"),
    "scoring": on_process(shift_scores),
    "stop_sequences": on_process(cut_tokens_only),
    "end_of_text": on_process(add_eos),
    "tokenize_truncates": without("truncation", "max_length"),
    "decode_restores": Change(answer=decode_bos),
    "overlong_prompt": Change(answer=refuse_long),
    "refusal": Change(answer=lambda path, sent, status, body: (status, "wrong") if status == 422 else (status, body)),
    "simultaneous": Change(blocks=True),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Application, its address, the model and its tokenizer."""
    from serving import serving
    from tiny import make_checkpoint

    folder = make_checkpoint(tmp_path_factory.mktemp("served") / "model", num_key_value_heads=2)
    model, tokenizer = lit_llm.load(folder)
    app = Breakable(make_app(model, tokenizer, ServeArgs(max_body_size=200_000)))
    with serving(app) as url:
        yield app, url, model, tokenizer


@pytest.fixture
def server(served):
    app, url, *_ = served
    app.change = None
    return Server(url, timeout=60, context=256)


def test_the_checker_finds_every_rule_kept(server):
    assert {name: broken for name, broken in check(server).items() if broken} == {}


@pytest.mark.parametrize("rule", [rule.__name__ for rule in RULES])
def test_the_checker_finds_a_broken_rule(served, server, rule):
    served[0].change = BROKEN[rule]
    with pytest.raises((AssertionError, KeyError, TypeError)):
        next(r for r in RULES if r.__name__ == rule)(server)


def test_the_check_fails_if_a_rule_is_broken_or_no_answer_comes(served, server, capsys):
    served[0].change = BROKEN["request_time"]
    with pytest.raises(ValueError, match=f"breaks 1 of {len(RULES)} rules"):
        check_url(ChallengeCheckArgs(url=served[1], context=256))
    printed = capsys.readouterr().out
    assert "BROKEN request_time" in printed
    assert printed.count("ok    ") == len(RULES) - 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match=r"generate/serve\.py --port"):
            check_url(ChallengeCheckArgs(url=f"http://127.0.0.1:{free.getsockname()[1]}"))


def test_scores_are_those_of_the_model(served, server):
    """Every token of an echoed prompt and its continuation, against one forward pass over both."""
    _, _, model, tokenizer = served
    answer = server.process(max_new_tokens=10, echo_prompt=True, top_k_per_token=3)
    ids = tokenizer.encode(STORY)
    with torch.no_grad():
        while len(ids) < len(answer["tokens"]):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        log_probs = model(torch.tensor([ids]))[0].log_softmax(-1)
    assert answer["tokens"][0]["logprob"] == 0.0
    for i, token in enumerate(answer["tokens"][1:]):
        assert token["logprob"] == pytest.approx(log_probs[i, ids[i + 1]].item(), abs=1e-4)
        assert max(token["top_logprob"].values()) == pytest.approx(log_probs[i].max().item(), abs=1e-4)


def test_an_answer_ends_at_eos(served, server, monkeypatch):
    _, _, model, tokenizer = served
    whole = server.process(max_new_tokens=20)
    plain = lit_llm.Tokenizer.encode  # what the model makes of the prompt, token by token
    ids = plain(tokenizer, STORY)
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    monkeypatch.setattr("lit_llm.text.tokenizer.Tokenizer.eos_ids", frozenset([ids[-1]]))
    answer = server.process(max_new_tokens=20)
    first = ids.index(ids[-1], len(plain(tokenizer, STORY))) - len(plain(tokenizer, STORY))
    assert len(answer["tokens"]) == first
    assert whole["text"].startswith(answer["text"].rstrip("\ufffd"))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature"),
        ({"prompt": "a", "max_new_tokens": -1}, "max_new_tokens"),
        ({"prompt": "a", "max_new_tokens": 100_000}, "max_new_tokens"),
        ({"prompt": "a " * 400}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": "a", "top_p": 0}, "top_p"),
        ({"prompt": "a", "num_samples": 2}, "num_samples"),
        ({"prompt": "a", "seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_served_is_refused(server, body, field):
    status, answer = server.send("/process", body)
    assert status == 422
    assert answer["detail"][0]["loc"] == ["body", field]
    assert set(answer["detail"][0]) == {"loc", "msg", "type"}


def test_a_long_body_is_refused(server):
    status, _ = server.send("/tokenize", {"text": "a" * 300_000})
    assert status == 413
    assert server.tokenize("the cat")


def test_an_empty_prompt_starts_from_bos(server):
    assert server.process("", max_new_tokens=3, echo_prompt=True)["tokens"][0]["text"] == ""


@pytest.mark.parametrize("name", ["tokenizer_mistral_hf", "tokenizer_neox_pythia", "stories260K"])
@pytest.mark.parametrize("text", ["Hello  world", " a b", "naïve 日本 😀 x", "a\n\nb\t", "</s> is text"])
def test_pieces_join_to_the_text(shared_data, name, text, tmp_path):
    folder = shared_data / name
    if name == "tokenizer_neox_pythia":
        (tmp_path / "tokenizer.json").write_bytes((folder / "20B_tokenizer.json").read_bytes())
        folder = tmp_path
    tokenizer = lit_llm.Tokenizer(folder)
    ids = tokenizer.encode(text)
    parts = pieces(tokenizer, ids, text)
    assert "".join(parts) == text
    assert len(parts) == len(ids)
    if "<" not in text:
        assert max(map(len, parts)) < len(text)
        before, after = ids[:3], ids[3:]
        rest = tokenizer.decode(ids)[len(tokenizer.decode(before)) :]
        stream = TextStream(tokenizer, before=before)
        assert "".join([*map(stream.feed, after), stream.close()]) == rest


def test_the_script_serves_the_demo_until_it_is_told_to_stop():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, REPOSITORY / "generate/serve.py", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert any(line.startswith("serving ") for line in process.stderr)
        with urlopen(Request(f"http://127.0.0.1:{port}/health"), timeout=5) as response:  # it takes requests as it says so
            assert json.loads(response.read()) == {"status": "ok"}
        done = subprocess.run(
            [sys.executable, REPOSITORY / "eval/challenge_check.py", "--url", f"http://127.0.0.1:{port}", "--context", "256"],
            env=environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert "Traceback" not in errors
        assert process.returncode in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
