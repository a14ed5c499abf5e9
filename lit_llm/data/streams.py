"""Files as streams of bytes or text; those compressed with gzip or zstd are decompressed while they are read."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lit_llm.errors import DataError, brief

COMPRESSED = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz",
}  # fmt: skip
BLANK = codecs.BOM_UTF8 + b" \t\r\n"
SUFFIXES = (".gz", ".zst")
"""Suffixes of compressed files. They come after the suffix that names the format, as in `.jsonl.gz`."""


def plain_name(path: Path) -> str:
    """Return the name of a file without the suffix of its compression."""
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def format_of(path: Path) -> str:
    """Return the suffix that names the format of a file, in lower case: `.jsonl` for `rows.jsonl.gz`."""
    return Path(plain_name(path)).suffix.lower()


def compression(path: Path) -> str | None:
    """Return the compression of a file, as its first bytes show it, or None."""
    with path.open("rb") as file:
        start = file.read(6)
    return next((kind for magic, kind in COMPRESSED.items() if start.startswith(magic)), None)


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file as a stream of its decompressed bytes.

    Raises:
        FileNotFoundError: if the file does not exist.
        DataError: if it is damaged, or compressed in another way.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    kind = compression(path)
    if kind in (None, "gzip"):
        with path.open("rb") as file, _damage(path, (EOFError, zlib.error, gzip.BadGzipFile)):
            yield gzip.GzipFile(fileobj=file) if kind else file  # pyright: ignore[reportReturnType]  # a GzipFile is a stream of bytes
    elif kind == "zstd":
        pyarrow = import_pyarrow(path, "zstd")
        # The stream of the package zstandard 0.25 ends without an error where a file is cut off.
        with pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd") as raw, _damage(path, (OSError,)):
            yield io.BufferedReader(raw)
    else:
        raise DataError(f"{path} is compressed ({kind}). Decompress it first, or use gzip or zstd")


@contextmanager
def _damage(path: Path, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise DataError(f"{path} is damaged ({brief(error)}). Download or compress it again") from error


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a UTF-8 file, with or without a byte order mark."""
    try:
        with open_bytes(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            yield text
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8") from error


def import_pyarrow(path: Path, what: str):
    """Return pyarrow, or raise DataError that names it."""
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(f"{path}: reading {what} needs pyarrow: pip install pyarrow") from error
    return pyarrow
