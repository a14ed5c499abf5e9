"""Tokens that are no whole characters, in every field that names tokens."""

import json

import openai
import pytest
import torch
from serving import serving
from tiny import make_checkpoint

pytest.importorskip("fastapi")

from test_openai_routes import send

import lit_llm
from lit_llm.args.serve import ServeArgs
from lit_llm.serving.app import make_app

TEXT = "鹅é"  # three and two bytes, each a token


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A model that writes TEXT, one byte a token: the row of each byte's head is the embedding of the byte before it."""
    model, tokenizer = lit_llm.load(make_checkpoint(tmp_path_factory.mktemp("names") / "m"), device="cpu")
    ids = tokenizer.encode_more(TEXT)
    assert len(ids) == len(TEXT.encode())
    with torch.no_grad():
        hidden = model.hidden(torch.tensor([[tokenizer.bos_id, *ids]]))[0]
        model.lm_head.weight[ids] = 40 * torch.nn.functional.normalize(hidden[:-1], dim=-1)
    with serving(make_app(model, tokenizer, ServeArgs(), name="m")) as url:
        yield url, model, tokenizer, ids


def best(served, n):
    """The most likely tokens after BOS and the first bytes, from the model itself."""
    _, model, tokenizer, ids = served
    with torch.no_grad():
        log_probs = model(torch.tensor([[tokenizer.bos_id, *ids]]))[0].log_softmax(-1)
    return [at.topk(n) for at in log_probs]


def spelled(tokenizer, i):
    return "bytes:" + "".join(f"\\x{b:02x}" for b in tokenizer.token_bytes(i))


@pytest.mark.parametrize("stream", [False, True])
def test_completions_name_bytes_and_lose_none(served, stream):
    url, _, tokenizer, ids = served
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    answer = client.completions.create(
        model="m", prompt=[tokenizer.bos_id], max_tokens=5, temperature=0, logprobs=20, stream=stream
    )
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    assert "".join(choice.text for choice in choices) == TEXT
    assert [t for choice in choices for t in choice.logprobs.tokens] == [spelled(tokenizer, i) for i in ids]
    tops = [top for choice in choices for top in choice.logprobs.top_logprobs]
    assert [len(top) for top in tops] == [20] * 5
    for top, expected in zip(tops, best(served, 20), strict=False):
        assert list(top.values()) == pytest.approx(expected.values.tolist(), rel=1e-5, abs=1e-5)
        for name, i in zip(top, expected.indices.tolist(), strict=True):
            data = tokenizer.token_bytes(i)
            if data and data.decode(errors="ignore").encode() != data:
                assert name == spelled(tokenizer, i)
            elif data:
                assert name in (data.decode(), f"token_id:{i}")


@pytest.mark.parametrize("stream", [False, True])
def test_chats_have_the_bytes_of_each_token(served, stream):
    client = openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "a"}], max_tokens=8, temperature=1.5, seed=3, logprobs=True,
        top_logprobs=20, stream=stream,
    )  # fmt: skip
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    tokens = [t for choice in choices if choice.logprobs for t in choice.logprobs.content]
    entries = [entry for token in tokens for entry in (token, *token.top_logprobs)]
    assert any(entry.token.startswith("bytes:") for entry in entries)
    for entry in entries:
        if entry.token.startswith("bytes:"):
            assert bytes(entry.bytes).decode(errors="replace") != bytes(entry.bytes).decode(errors="ignore")
            assert entry.token == "bytes:" + "".join(f"\\x{b:02x}" for b in entry.bytes)
        elif entry.bytes is not None:
            assert bytes(entry.bytes).decode() == entry.token
    for token in tokens:
        assert len({(top.token, *(top.bytes or ())) for top in token.top_logprobs}) == 20


def test_the_challenge_loses_no_candidate(served):
    body = {"prompt": "a", "max_new_tokens": 2, "top_k_per_token": 200, "temperature": 0}
    _, answer = send(served[0], json.dumps(body).encode(), "/process")
    assert [len(token["top_logprob"]) for token in answer["tokens"]] == [200] * len(answer["tokens"])
    assert "".join(token["text"] for token in answer["tokens"]) == answer["text"]
