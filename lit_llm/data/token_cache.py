"""Cache of the tokens of a file of records, next to it: one for each tokenizer, style and set of options."""

import hashlib
import itertools
import os
import shutil
import sys
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import torch

from lit_llm.data.examples import Example, Pair, Rewritten, drop_long, tokenize
from lit_llm.data.records import Record, unpaired_fields
from lit_llm.data.rows import iter_records
from lit_llm.errors import DataError
from lit_llm.files import claimed, digest_of, safetensors_header
from lit_llm.text.conversation import TrainOn, default_style, fingerprint, prompt_style
from lit_llm.text.tokenizer import Tokenizer

VERSION = 4  # of the result of `tokenize`; another number invalidates all caches
CACHED_FROM = 2**20  # bytes of records; fewer are tokenized within a second


def examples_of(
    path: Path,
    style: str,
    tokenizer: Tokenizer,
    mask_prompt: bool = True,
    train_on: TrainOn = "all",
    records: Iterable[Record] | None = None,
) -> Sequence[Example | Pair | Rewritten]:
    """Return the examples of all records of a `.jsonl` file, in its order. Those of a large file are cached.

    Args:
        records: Those of the file, if they were read already.

    Raises:
        DataError: with file and record, if one cannot be tokenized.
    """
    if not path.is_file() or path.stat().st_size < CACHED_FROM or not os.access(path.parent, os.W_OK):
        return list(_tokenized(path, style, tokenizer, mask_prompt, train_on, records))
    about = (VERSION, digest_of(path, "0" * 64), tokenizer.fingerprint, mask_prompt, train_on)
    key = hashlib.sha256(repr((*about, fingerprint(prompt_style(style, tokenizer), tokenizer))).encode()).hexdigest()
    cache = path.parent / f"{path.stem}-tokens-{key[:16]}.safetensors"
    with claimed(cache, "data_dir", wait=True):
        if cache.is_file():
            print(f"tokens of {path}: from {cache.name}", file=sys.stderr)
        else:
            _write(cache, _tokenized(path, style, tokenizer, mask_prompt, train_on, records))
            print(f"tokens of {path}: written to {cache.name}", file=sys.stderr)
    return CachedExamples(cache)


def _tokenized(
    path: Path,
    style_name: str,
    tokenizer: Tokenizer,
    mask_prompt: bool,
    train_on: TrainOn,
    records: Iterable[Record] | None,
) -> Iterator[Example | Pair | Rewritten]:
    style = prompt_style(style_name, tokenizer)
    for number, record in enumerate(iter_records(path) if records is None else records, 1):
        try:
            example = tokenize(record, style, tokenizer, mask_prompt, train_on)
        except ValueError as error:
            raise DataError(f"{path}: record {number}: {error}") from error
        yield example


def _write(path: Path, examples: Iterable[Example | Pair | Rewritten]) -> None:
    """Write a safetensors file of all tokens end to end. Tokens are streamed; only the lengths are in memory."""
    lengths, documents, pairs = array("q"), array("q"), bytearray()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".new-{path.name}-") as place:
        folder = Path(place)
        with (folder / "ids").open("wb") as ids, (folder / "trained").open("wb") as trained:
            for example in examples:
                documents.append(len(example.documents))
                pairs.append(isinstance(example, Pair))
                for document in example.documents:
                    ids.write(document.ids.numpy().tobytes())
                    trained.write(document.trained.numpy().tobytes())
                    lengths.append(len(document))
        (folder / "lengths").write_bytes(lengths.tobytes())
        (folder / "documents").write_bytes(documents.tobytes())
        (folder / "pairs").write_bytes(pairs)
        n = sum(lengths)
        kinds = {"lengths": ("I64", len(lengths)), "documents": ("I64", len(documents))}
        kinds |= {"ids": ("I32", n), "trained": ("BOOL", n), "pairs": ("BOOL", len(pairs))}
        about = ((name, kind, [n], (folder / name).stat().st_size) for name, (kind, n) in kinds.items())
        with (folder / "whole").open("wb") as whole:
            whole.write(safetensors_header(about))
            for name in kinds:
                with (folder / name).open("rb") as part:
                    shutil.copyfileobj(part, whole)
        (folder / "whole").replace(path)


class CachedExamples(Sequence["Example | Pair | Rewritten"]):
    """Sequence of examples in a memory-mapped file. Only the position of each is in memory."""

    def __init__(self, path: Path) -> None:
        from safetensors.torch import load_file

        tensors = load_file(path)
        zero = torch.zeros(1, dtype=torch.int64)
        self._ids, self._trained, self._is_pair = tensors["ids"], tensors["trained"], tensors["pairs"]
        self._n_documents = tensors["documents"]
        self._starts = torch.cat([zero, tensors["lengths"].cumsum(0)])  # of each document
        self._first = torch.cat([zero, self._n_documents.cumsum(0)])  # document of each example

    def __len__(self) -> int:
        return len(self._n_documents)

    @overload
    def __getitem__(self, index: int) -> Example | Pair | Rewritten: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example | Pair | Rewritten]: ...
    def __getitem__(self, index: int | slice) -> Example | Pair | Rewritten | list[Example | Pair | Rewritten]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        first, n = int(self._first[range(len(self))[index]]), int(self._n_documents[index])
        bounds = itertools.pairwise(self._starts[first : first + n + 1].tolist())
        found = [Example(self._ids[begin:end], self._trained[begin:end]) for begin, end in bounds]
        if self._is_pair[index]:
            return Pair(found[0], found[1])
        return Rewritten(tuple(found)) if n > 1 else found[0]


def style_of(path: Path, tokenizer: Tokenizer) -> str:
    """Return the default prompt style for the records of a file: `none` for plain text."""
    is_text = all("text" in record for record in iter_records(path))  # stops at the first row that is not
    return default_style(tokenizer, is_text)


def token_counts(path: Path, tokenizer: Tokenizer) -> str:
    """Return a line about the lengths of a file's examples."""
    style = style_of(path, tokenizer)
    if unpaired_fields(next(iter_records(path))):
        return "tokens are not counted: no script trains on unpaired feedback yet"
    examples = drop_long(examples_of(path, style, tokenizer), sys.maxsize).examples
    lengths = sorted(map(len, examples))
    n_trained = sum(example.n_labels for example in examples)
    return (
        f"tokens per example: median {lengths[len(lengths) // 2]}, longest {lengths[-1]}, total {sum(lengths)}, "
        f"{n_trained} of them trained ({style})"
    )
