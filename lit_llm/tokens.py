"""The tokens of a file of records, cached beside it: made once for each tokenizer, style and set of options."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from lit_llm.checkpoint import save_safetensors
from lit_llm.data import Example, Pair, Record, iter_records, tokenize
from lit_llm.fetch import digest_of
from lit_llm.prompts import TrainOn, fingerprint, prompt_style
from lit_llm.tokenizer import Tokenizer

VERSION = 1  # of what `tokenize` makes; another number makes all caches anew
CACHED_FROM = 2**20  # bytes of records: fewer are tokenized in a second


def examples_of(
    path: Path, style: str, tokenizer: Tokenizer, mask_prompt: bool = True, train_on: TrainOn = "all"
) -> list[Example | Pair]:
    """Examples of all records of a `.jsonl` file, in its order, memory-mapped if they were cached.

    Raises:
        ValueError: with file and record, for one that cannot be tokenized.
    """
    if not path.is_file() or path.stat().st_size < CACHED_FROM or not os.access(path.parent, os.W_OK):
        return list(_tokenized(path, style, tokenizer, mask_prompt, train_on))
    about = (VERSION, digest_of(path, "0" * 64), tokenizer.fingerprint, mask_prompt, train_on)
    key = hashlib.sha256(repr((*about, fingerprint(prompt_style(style, tokenizer), tokenizer))).encode()).hexdigest()
    cache = path.parent / f"{path.stem}-tokens-{key[:16]}.safetensors"
    if cache.is_file():
        print(f"tokens of {path}: from {cache.name}", file=sys.stderr)
        return _read(cache)
    examples = list(_tokenized(path, style, tokenizer, mask_prompt, train_on))
    _write(cache, examples)
    print(f"tokens of {path}: written to {cache.name}", file=sys.stderr)
    return examples


def _tokenized(
    path: Path, style_name: str, tokenizer: Tokenizer, mask_prompt: bool, train_on: TrainOn
) -> Iterator[Example | Pair]:
    style = prompt_style(style_name, tokenizer)
    for number, record in enumerate(iter_records(path), 1):
        with _numbered(path, number):
            example = tokenize(record, style, tokenizer, mask_prompt, train_on)
        yield example


@contextlib.contextmanager
def _numbered(path: Path, number: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: record {number}: {error}") from error


def _write(path: Path, examples: list[Example | Pair]) -> None:
    documents = [document for example in examples for document in example.documents]
    tensors = {
        "ids": torch.cat([document.ids for document in documents]),
        "trained": torch.cat([document.trained for document in documents]),
        "lengths": torch.tensor([len(document) for document in documents]),
        "documents": torch.tensor([len(example.documents) for example in examples]),
    }
    new = path.with_name(f".{path.name}.{os.getpid()}")
    save_safetensors(tensors, new)
    new.replace(path)


def _read(path: Path) -> list[Example | Pair]:
    from safetensors.torch import load_file

    tensors = load_file(path)
    lengths = tensors["lengths"].tolist()
    parts = zip(tensors["ids"].split(lengths), tensors["trained"].split(lengths), strict=True)
    documents = (Example(ids, trained) for ids, trained in parts)
    return [Pair(next(documents), next(documents)) if n == 2 else next(documents) for n in tensors["documents"].tolist()]


def token_counts(path: Path, style: str, tokenizer: Tokenizer) -> str:
    """A line about the lengths of a file's examples."""
    examples = examples_of(path, style, tokenizer)
    lengths = sorted(map(len, examples))
    n_trained = sum(example.n_labels for example in examples)
    return (
        f"tokens per example: median {lengths[len(lengths) // 2]}, longest {lengths[-1]}, in all {sum(lengths)}, "
        f"of them {n_trained} trained ({style})"
    )


def shown(record: Record, style: str, tokenizer: Tokenizer, mask_prompt: bool, train_on: TrainOn, color: bool) -> str:
    """The text of a record token by token: what is trained in green, or between ⟦ and ⟧ without colour."""
    opening, closing = ("\033[32m", "\033[0m") if color else ("⟦", "⟧")
    texts = []
    for document in tokenize(record, style, tokenizer, mask_prompt, train_on).documents:
        trained = document.trained.tolist()
        ids = document.ids.tolist()
        text, start = "", 0
        for i in range(1, len(ids) + 1):
            if i == len(ids) or trained[i] != trained[start]:
                part = tokenizer.decode_visibly(ids[start:i])
                text += f"{opening}{part}{closing}" if trained[start] else part
                start = i
        texts.append(text)
    return "\n--- rejected:\n".join(texts)
