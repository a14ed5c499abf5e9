"""Mutated bodies of chats and completions: each must end in an answer, or in an error in OpenAI's format."""

import json
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from hypothesis import strategies as st
from serving import serving

pytest.importorskip("fastapi")

import fuzz

import lit_llm
from lit_llm.args.serve import ServeArgs
from lit_llm.cli import DEMO
from lit_llm.serving.app import make_app

SAMPLING = {
    "model": "demo", "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.0, "repetition_penalty": 1.1,
    "n": 1, "seed": 1, "stop": ["a"], "stream": True, "stream_options": {"include_usage": True}, "user": "me", "logit_bias": {},
}  # fmt: skip
COMPLETION = {**SAMPLING, "prompt": ["the goose", [5, 6]], "echo": True, "logprobs": 2, "best_of": 1}
MESSAGES = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": [{"type": "text", "text": "where"}], "name": "me"},
    {"role": "assistant", "content": None, "tool_calls": [], "refusal": None},
    {"role": "user", "content": "and now?"},
]
CHAT = {
    **SAMPLING, "messages": MESSAGES, "logprobs": True, "top_logprobs": 2, "max_completion_tokens": 2, "tools": [],
    "chat_template_kwargs": {"enable_thinking": False}, "continue_final_message": False, "add_generation_prompt": True,
    "response_format": {"type": "text"},
}  # fmt: skip
ROUTES = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETION}


@pytest.fixture(scope="module")
def url():
    with serving(make_app(*lit_llm.load(DEMO / "checkpoint", device="cpu"), ServeArgs(), name="demo")) as address:
        yield address


def check(url, path, body):
    try:
        with urlopen(Request(url + path, body, {"Content-Type": "application/json"}), timeout=60) as answer:
            status, text = answer.status, answer.read().decode()
    except HTTPError as error:
        status, text = error.code, error.read().decode()
    if status != 200:
        assert 400 <= status < 500, (status, body[:500])
        found = json.loads(text)["error"]
        assert found.keys() == {"message", "type", "param", "code"}
        assert found["message"] and not fuzz.PYTHONS_WORDS.search(found["message"]), found
        assert len(found["message"]) < 2000
        return
    if text.startswith("data: "):
        assert text.endswith("data: [DONE]\n\n"), text[-300:]
    else:
        assert json.loads(text)["choices"]


@fuzz.fuzz(st.sampled_from([*ROUTES]).flatmap(lambda path: st.tuples(st.just(path), fuzz.mutated_json(ROUTES[path]))))
def test_bodies_end_in_an_answer_or_a_clear_error(url, found):
    check(url, *found)
