"""The tokenizer in the metadata of a GGUF file, as the files that upstream would ship."""

import contextlib
import functools
import json
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_llm.errors import CheckpointError
from lit_llm.files import json_text
from lit_llm.schema import shown
from lit_llm.text.gguf_file import GGUF, is_gguf, read_gguf
from lit_llm.text.gguf_pretokenizers import SPLITTINGS, Splitting, pre_tokenizer, splitting_named

# Kinds of tokens, by their numbers in GGUF files and in SentencePiece models.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_NAMES = ("bos", "eos", "unknown", "padding")
_ENDS = ("eos", "eot", "eom")
_CONFIG_NAMES = {"unknown": "unk", "padding": "pad"}


def tokenizer_folder(checkpoint_dir: Path) -> Path:
    """Return a folder with tokenizer files: the checkpoint itself or, for a GGUF file, a temporary one made from its metadata.

    Raises:
        CheckpointError: if the tokenizer in the file is not of a kind that is supported.
    """
    if not is_gguf(checkpoint_dir):
        return checkpoint_dir
    stat = checkpoint_dir.stat()
    return Path(_extracted(checkpoint_dir, stat.st_mtime_ns, stat.st_size).name)


@contextlib.contextmanager
def renamed(folder: Path, checkpoint_dir: Path | str) -> Iterator[None]:
    """Name the GGUF file in errors about the temporary folder that was made from it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(folder), str(checkpoint_dir))) from error


@functools.lru_cache(maxsize=4)
def _extracted(path: Path, changed: int, size: int) -> "tempfile.TemporaryDirectory[str]":
    """The folder exists until the process ends, or another tokenizer has replaced this one in the cache."""
    folder = tempfile.TemporaryDirectory(prefix="lit_llm-gguf-")
    for name, content in tokenizer_files(read_gguf(path)).items():
        (Path(folder.name) / name).write_bytes(content)
    return folder


def tokenizer_files(file: GGUF) -> dict[str, bytes]:
    """Return the contents of `tokenizer.json` or `tokenizer.model`, `tokenizer_config.json` and `generation_config.json`."""
    kind = file.get("tokenizer.ggml.model", str)
    tokens, types = _tokens(file)
    if kind == "gpt2":
        row = _splitting(file)
        adds_bos = file.get("tokenizer.ggml.add_bos_token", bool, row.adds_bos)
        vocabulary = {"tokenizer.json": _tokenizer_json(file, row, tokens, types)}
    elif kind == "llama":
        adds_bos = file.get("tokenizer.ggml.add_bos_token", bool, True)
        vocabulary = {"tokenizer.model": _sentencepiece(file, tokens, types)}
    else:
        raise CheckpointError(
            f"{file.path}: metadata tokenizer.ggml.model {shown(kind)} is not supported; supported: gpt2 (byte-level BPE) and "
            "llama (SentencePiece). Use the model's Hugging Face folder"
        )
    ids = {name: _id(file, name, tokens) for name in {*_NAMES, *_ENDS}}
    config: dict[str, Any] = {
        "added_tokens_decoder": {str(i): token for i, token in _added(tokens, types).items()},
        **{f"{_CONFIG_NAMES.get(name, name)}_token": tokens[i] for name in _NAMES if (i := ids[name]) is not None},
        "add_bos_token": adds_bos,
        "tokenizer_class": "PreTrainedTokenizerFast" if kind == "gpt2" else "LlamaTokenizer",
    }
    if kind == "llama":  # legacy: llama.cpp puts a space behind each special token, too
        config |= {"add_prefix_space": file.get("tokenizer.ggml.add_space_prefix", bool, True), "legacy": True}
    if template := _templates(file):
        config["chat_template"] = template
    ends = list(dict.fromkeys(i for name in _ENDS if (i := ids[name]) is not None))
    generation = {"bos_token_id": ids["bos"], "eos_token_id": ends}
    written = {
        "tokenizer_config.json": config,
        "generation_config.json": {k: v for k, v in generation.items() if v not in (None, [])},
    }
    return vocabulary | {name: json_text(value, indent=2).encode() for name, value in written.items()}


def _tokens(file: GGUF) -> tuple[list[str], list[int]]:
    tokens = file.get("tokenizer.ggml.tokens", list)
    types = file.get("tokenizer.ggml.token_type", list, [NORMAL] * len(tokens))
    if not all(type(token) is str for token in tokens) or not all(type(kind) is int for kind in types):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.tokens or token_type has a wrong type. Download another GGUF file")
    if len(tokens) != len(types) or len(set(tokens)) != len(tokens):
        n, different = len(tokens), len(set(tokens))
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.tokens has {n} tokens, {different} different ones, and {len(types)} types. "
            "Download another GGUF file"
        )
    return tokens, types


def _id(file: GGUF, name: str, tokens: list[str]) -> int | None:
    i = file.optional(f"tokenizer.ggml.{name}_token_id", int)
    if i is not None and not 0 <= i < len(tokens):
        raise CheckpointError(
            f"{file.path}: metadata tokenizer.ggml.{name}_token_id {i} is not one of {len(tokens)} tokens. "
            "Download another GGUF file"
        )
    return i


def _added(tokens: list[str], types: list[int]) -> dict[int, dict[str, Any]]:
    special = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
    return {
        i: {
            "content": token,
            "special": special[kind],
            "normalized": False,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
        }
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in special
    }


def _templates(file: GGUF) -> str | list[dict[str, str]] | None:
    default = file.optional("tokenizer.chat_template", str)
    names = file.get("tokenizer.chat_templates", list, [])
    named = {str(name): file.get(f"tokenizer.chat_template.{name}", str) for name in names}
    if not named:
        return default
    return [{"name": name, "template": text} for name, text in ({"default": default} | named if default else named).items()]


def _splitting(file: GGUF) -> Splitting:
    name = file.get("tokenizer.ggml.pre", str, "default")
    row = splitting_named(name)
    if row is None:
        known = ", ".join(name for row in SPLITTINGS for name in row.names)
        raise CheckpointError(
            f"{file.path}: metadata tokenizer.ggml.pre {shown(name)} names a way to split text that is not known; "
            f"known: {known}. Use the model's Hugging Face folder"
        )
    return row


def _tokenizer_json(file: GGUF, row: Splitting, tokens: list[str], types: list[int]) -> bytes:
    merges = file.get("tokenizer.ggml.merges", list)
    if not all(type(merge) is str and " " in merge for merge in merges):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.merges must be pairs of tokens. Download another GGUF file")
    content = {
        "version": "1.0",
        "added_tokens": [{"id": i, **token} for i, token in _added(tokens, types).items()],
        "normalizer": {"type": "NFC"} if row.nfc else None,
        "pre_tokenizer": pre_tokenizer(row),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": row.ignore_merges,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    return json.dumps(content, ensure_ascii=False).encode()


def _sentencepiece(file: GGUF, tokens: list[str], types: list[int]) -> bytes:
    """Return a SentencePiece model, a protocol buffer (sentencepiece, src/sentencepiece_model.proto)."""
    scores = file.get("tokenizer.ggml.scores", list, [0.0] * len(tokens))
    if len(scores) != len(tokens) or not all(type(score) is float for score in scores):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.scores must be {len(tokens)} numbers. Download another GGUF file")
    if types.count(UNKNOWN) != 1:
        raise CheckpointError(f"{file.path}: {types.count(UNKNOWN)} tokens are of the unknown kind, expected 1")
    pieces = b"".join(
        _message(1, _message(1, token.encode()) + b"\x15" + struct.pack("<f", score) + _integer(3, kind))
        for token, score, kind in zip(tokens, scores, types, strict=True)
    )
    ids = {41: _id(file, "bos", tokens), 42: _id(file, "eos", tokens), 43: _id(file, "padding", tokens)}
    trainer = _integer(3, 2) + _integer(4, len(tokens)) + _integer(35, BYTE in types) + _integer(40, types.index(UNKNOWN))
    trainer += b"".join(_integer(number, -1 if i is None else i) for number, i in ids.items())
    trainer += _message(45, tokens[types.index(UNKNOWN)].encode())
    prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    normalizer = _message(1, b"identity") + _integer(3, prefix) + _integer(4, False) + _integer(5, True)
    return pieces + _message(2, trainer) + _message(3, normalizer)


def _varint(n: int) -> bytes:
    """Return 7 bits per byte, the lowest first; negative numbers in two's complement of 64 bits."""
    n &= 2**64 - 1
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content
