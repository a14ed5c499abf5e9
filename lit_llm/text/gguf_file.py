"""GGUF files: metadata and the places of tensors (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

The parser is ours: that of the `gguf` package builds an array per string, which takes seconds for a large vocabulary, and a
truncated file is an exception of NumPy there.
"""

import functools
import importlib.util
import mmap
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lit_llm.errors import CheckpointError
from lit_llm.schema import shown

T = TypeVar("T")

SUFFIX = ".gguf"

_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_KINDS = {str: "a string", bool: "true or false", int: "an integer", float: "a number", list: "a list"}
# Beyond these the file is damaged: names of tensors and numbers of dimensions are limited by llama.cpp itself.
_MAX_ENTRIES = 10**6
_MAX_DIMS = 4
_MAX_SIZE = 2**40


class Info(NamedTuple):
    """A tensor in a file."""

    path: Path
    shape: tuple[int, ...]
    """As PyTorch orders it: the innermost dimension is last."""
    type: int
    """Number of its ggml type."""
    start: int
    """Position of its first byte in the file."""


@dataclass(frozen=True)
class GGUF:
    """The metadata and tensors of one file, or of all parts of a split one."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Info]

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return the value of a key; with `{arch}` in it, of the file's architecture.

        Raises:
            CheckpointError: if it has another type, or is missing and has no default.
        """
        key = key.replace("{arch}", str(self.metadata.get("general.architecture")))
        value = self.metadata.get(key, default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            found = "it is missing" if value is None else f"found {shown(value)}"
            raise CheckpointError(f"{self.path}: metadata {key} must be {_KINDS[kind]}; {found}. Download another GGUF file")
        return value

    def optional(self, key: str, kind: type[T]) -> T | None:
        """Return the value of a key, or None if it is missing."""
        key = key.replace("{arch}", str(self.metadata.get("general.architecture")))
        return self.get(key, kind) if key in self.metadata else None

    def has(self, tensor: str) -> bool:
        return tensor in self.tensors


def is_gguf(path: Path) -> bool:
    """Return whether a path is a GGUF file. Raise CheckpointError if it is one and the package to read it is missing."""
    if path.suffix != SUFFIX or not path.is_file():
        return False
    check_installed(str(path))
    return True


def check_installed(needing: str) -> None:
    """Raise CheckpointError, which names what needs it, if the package `gguf` is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(f"{needing} needs the package gguf. Install it: pip install 'lit_llm[gguf]'")


def read_gguf(path: Path) -> GGUF:
    """Read the metadata of a file, and of all parts if it is a part of a split one.

    Raises:
        CheckpointError: if the file is truncated, damaged or not GGUF.
        FileNotFoundError: if a part is missing.
    """
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4)
def _read(path: Path, changed: int, size: int) -> GGUF:
    first = _read_part(path)
    n_parts = first.get("split.count", int, 0)
    if n_parts < 2:
        return first
    match = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})", path.stem)
    if match is None or int(match[2]) != n_parts:
        raise CheckpointError(f"{path} is one of {n_parts} parts, which must be named NAME-00001-of-{n_parts:05d}.gguf")
    tensors: dict[str, Info] = {}
    metadata = dict(first.metadata)
    for i in range(1, n_parts + 1):
        part = path.with_name(f"{match[1]}-{i:05d}-of-{n_parts:05d}{SUFFIX}")
        if not part.is_file():
            raise FileNotFoundError(f"{path} needs {part.name}, which is missing. Download all {n_parts} parts")
        read = _read_part(part)
        tensors |= read.tensors
        metadata = {**read.metadata, **metadata} if i > 1 else {**metadata, **read.metadata}
    return GGUF(path, metadata, tensors)


def _read_part(path: Path) -> GGUF:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(f"{path} is not a GGUF file: it does not begin with GGUF. Download it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Parser(path, content).parse()


class _Parser:
    """Reads values one after another. `position` is the byte that comes next."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content, self.position = path, content, 4

    def parse(self) -> GGUF:
        version = self.number("I")
        if version not in (2, 3):
            raise CheckpointError(
                f"{self.path} has version {version} of GGUF; versions 2 and 3 in little-endian order are supported. "
                "Download another GGUF file"
            )
        n_tensors, n_keys = self.count("tensors"), self.count("metadata keys")
        metadata = {}
        for _ in range(n_keys):
            key = self.string()
            metadata[key] = self.value(self.number("I"), key)
        places = [self.place() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= 2**20:
            raise self.damaged(f"general.alignment is {shown(alignment)}")
        data = -(-self.position // alignment) * alignment
        tensors = {name: Info(self.path, shape, kind, data + offset) for name, shape, kind, offset in places}
        return GGUF(self.path, metadata, tensors)

    def damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is truncated or damaged: {why}. Download it again")

    def take(self, n_bytes: int) -> bytes:
        if self.position + n_bytes > len(self.content):
            raise self.damaged(f"its header needs {self.position + n_bytes} bytes, the file has {len(self.content)}")
        start, self.position = self.position, self.position + n_bytes
        return self.content[start : self.position]

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def count(self, of: str) -> int:
        n = self.number("Q")
        if n > _MAX_ENTRIES:
            raise self.damaged(f"it would have {n} {of}")
        return n

    def string(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"a string before byte {self.position} is not UTF-8") from error

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        inner = self.number("I") if kind == _ARRAY else _ARRAY
        if inner == _ARRAY or (inner != _STRING and inner not in _NUMBERS):
            raise self.damaged(f"metadata {shown(key)} has type {kind} of elements {inner}")
        n = self.number("Q")
        if inner == _STRING:
            if n > len(self.content):
                raise self.damaged(f"metadata {shown(key)} would have {n} strings")
            read: Callable[[], str] = self.string
            return [read() for _ in range(n)]
        form = _NUMBERS[inner]
        return list(struct.unpack(f"<{n}{form}", self.take(n * struct.calcsize(f"<{form}"))))

    def place(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return name, shape, type and offset of a tensor."""
        name, n_dims = self.string(), self.number("I")
        if n_dims > _MAX_DIMS:
            raise self.damaged(f"tensor {shown(name)} has {n_dims} dimensions")
        shape = tuple(self.number("Q") for _ in range(n_dims))[::-1]
        if not all(0 < n < _MAX_SIZE for n in shape):
            raise self.damaged(f"tensor {shown(name)} has shape {list(shape)}")
        return name, shape, self.number("I"), self.number("Q")
