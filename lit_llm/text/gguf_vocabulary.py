"""A tokenizer as metadata of a GGUF file; the inverse of `gguf_tokenizer`."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HFTokenizer

from lit_llm.errors import CheckpointError
from lit_llm.text.gguf_file import is_gguf, read_gguf
from lit_llm.text.gguf_pretokenizers import SPLITTINGS, splitting_of
from lit_llm.text.gguf_tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.text.tokenizer_backends import FastBackend

_ELSEWHERE = "llama.cpp cannot compute it. Use the format of Hugging Face"


def vocabulary(checkpoint_dir: Path, tokenizer: Tokenizer, n_rows: int) -> dict[str, Any]:
    """Return the metadata of a tokenizer whose model has an embedding of `n_rows` rows.

    Raises:
        CheckpointError: if llama.cpp has no such kind of tokenizer.
    """
    if is_gguf(checkpoint_dir):
        return {key: value for key, value in read_gguf(checkpoint_dir).metadata.items() if key.startswith("tokenizer.")}
    backend = tokenizer.backend
    if isinstance(backend, FastBackend):
        content = json.loads(backend.pipeline.to_str())
        if content["model"]["type"] != "BPE":
            raise CheckpointError(f"the tokenizer in {checkpoint_dir} is of type {content['model']['type']}: {_ELSEWHERE}")
        tokens, types = _tokens(backend.pipeline, n_rows)
        if content["model"].get("byte_fallback"):
            scores = _scores(_merges(content), tokens)
            kind = {"model": "llama", "pre": "default", "scores": scores, "tokens": tokens}
            types = [
                _byte_or(kind, token, content["model"].get("unk_token")) for kind, token in zip(types, tokens, strict=True)
            ]
        else:
            kind = {
                "model": "gpt2",
                "pre": _pre(backend.pipeline, checkpoint_dir),
                "tokens": tokens,
                "merges": _merges(content),
            }
    else:
        tokens, scores, types = backend.pieces()
        tokens, types = _padded(tokens, types, n_rows)
        kind = {"model": "llama", "pre": "default", "scores": scores + [0.0] * (len(tokens) - len(scores)), "tokens": tokens}
    kind["token_type"] = types
    if kind["model"] == "llama":
        kind["add_space_prefix"] = tokenizer.token_string(backend.encode("a")[0]).startswith("▁")
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    ids |= {name: _named(tokenizer, token) for name, token in (("unknown", "unk_token"), ("padding", "pad_token"))}
    kind |= {f"{name}_token_id": i for name, i in ids.items() if i is not None}
    kind |= {"add_bos_token": tokenizer.adds_bos, "add_eos_token": False}
    return {f"tokenizer.ggml.{name}": value for name, value in kind.items()}


def _named(tokenizer: Tokenizer, name: str) -> int | None:
    token = tokenizer.special_tokens.get(name)
    return None if token is None else tokenizer.backend.token_id(token)


def _tokens(pipeline: HFTokenizer, n_rows: int) -> tuple[list[str], list[int]]:
    """Return the token and its kind for each id."""
    by_id = {i: token for token, i in pipeline.get_vocab(with_added_tokens=True).items()}
    added = pipeline.get_added_tokens_decoder()
    kinds = {i: CONTROL if token.special else USER_DEFINED for i, token in added.items()}
    n = max(by_id) + 1
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(n)]
    types = [kinds.get(i, NORMAL if i in by_id else UNUSED) for i in range(n)]
    return _padded(tokens, types, n_rows)


def _padded(tokens: list[str], types: list[int], n_rows: int) -> tuple[list[str], list[int]]:
    """Name the rows of the embedding that no token has."""
    return tokens + [f"[PAD{i}]" for i in range(len(tokens), n_rows)], types + [UNUSED] * (n_rows - len(types))


def _byte_or(kind: int, token: str, unknown: str | None) -> int:
    if token == unknown:
        return UNKNOWN
    return BYTE if len(token) == 6 and token.startswith("<0x") and token.endswith(">") else kind


def _merges(content: dict[str, Any]) -> list[str]:
    """Return pairs of tokens; a space within a token is spelled as byte-level pipelines do."""
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in content["model"]["merges"])
    return [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in pairs]


def _scores(merges: list[str], tokens: list[str]) -> list[float]:
    """Return a score for each token: the earlier the first merge that makes it, the higher."""
    made: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        made.setdefault(merge.replace(" ", ""), -float(rank + 1))
    return [made.get(token, 0.0) for token in tokens]


def _pre(pipeline: HFTokenizer, checkpoint_dir: Path) -> str:
    row = splitting_of(pipeline)
    if row is None:
        known = ", ".join(row.names[0] for row in SPLITTINGS)
        raise CheckpointError(
            f"the tokenizer in {checkpoint_dir} splits text in a way that is none of these of llama.cpp: {known}. "
            "Use the format of Hugging Face"
        )
    return row.names[0]
