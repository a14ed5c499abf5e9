"""A source of rows: the files that are read, and the parts of them that can be prepared independently."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from lit_llm.data.file_readers import csv_columns, csv_rows, has_lines, is_csv, rows_of, text_rows
from lit_llm.data.rows import COLUMNS, KNOWN, first_exchange, shown_names
from lit_llm.data.shards import ROWS, TEXTS, files_of
from lit_llm.data.table_files import check_types
from lit_llm.errors import DataError
from lit_llm.files import digest_of

PART_BYTES = 2**25
"""Size of a part. It decides what an interrupted preparation repeats, never the result."""


class Part(Protocol):
    """Rows that a process reads on its own. Parts are pickled."""

    def files(self) -> Iterable[tuple[str, Iterable[Any]]]:
        """Return each file's name and rows; see `rows_of`."""
        ...


@dataclass(frozen=True)
class Slice:
    """The lines of a file that start in the bytes from `begin` to `end`; by default, all of the file."""

    path: Path
    begin: int = 0
    end: int | None = None


@dataclass(frozen=True)
class FilePart:
    slices: tuple[Slice, ...]
    read: Callable[..., Iterator[Any]]
    """Function of a path; for a slice also of `begin` and `end`."""

    def files(self) -> Iterable[tuple[str, Iterable[Any]]]:
        for slice in self.slices:
            span = () if slice.end is None else (slice.begin, slice.end)
            yield str(slice.path), self.read(slice.path, *span)


@dataclass(frozen=True)
class Source:
    """Rows to prepare.

    Attributes:
        name: Path or address that the user gave, for `meta.json` and messages.
        sha256: Digest of the content, which decides whether a folder is up to date.
        parts: In the order of the rows.
        columns: See `to_record`.
        held_out: Parts for validation. Without them, the rows of `parts` are split.
    """

    name: str
    sha256: str
    parts: Sequence[Part]
    columns: Mapping[str, str] = field(default_factory=lambda: COLUMNS)
    held_out: Sequence[Part] = ()


def row_files(name: str, columns: Mapping[str, str] = COLUMNS, read: Callable[..., Iterator[Any]] = rows_of) -> Source:
    """Return the source of files of rows; see `files_of`.

    Args:
        read: `rows_of`, or a function like it.

    Raises:
        DataError: if a column has different types in two files.
    """
    files = files_of(name, ROWS)
    for file in filter(is_csv, files):
        _check_columns(file, columns)
    check_types(files, {column.strip().lower() for column in (*KNOWN, *columns.values())})
    return _source(name, files, read, columns, has_lines)


def csv_files(name: str, columns: Mapping[str, str]) -> Source:
    """Return the source of files that are CSV whatever their names are."""
    files = files_of(name, (".csv", ".tsv"))
    for file in files:
        _check_columns(file, columns)
    return _source(name, files, csv_rows, columns)


def text_files(name: str, separator: str | None, chunk_chars: int) -> Source:
    """Return the source of text files, each of them one document or, with `separator`, several."""
    read = partial(text_rows, separator=separator, chunk_chars=chunk_chars)
    return _source(name, files_of(name, TEXTS), read, COLUMNS)


def read_first_exchanges(path: Path, begin: int = 0, end: int | None = None) -> Iterator[Any]:
    """Yield the rows of a file of conversations, each cut after its first exchange."""
    return map(first_exchange, rows_of(path, begin, end))


def _check_columns(path: Path, columns: Mapping[str, str]) -> None:
    """Raise DataError if the header of a CSV file lacks the columns of every kind of row."""
    found = csv_columns(path)
    plain = {name.strip().lower() for name in found}
    missing = [columns[name] for name in ("instruction", "output") if columns[name].strip().lower() not in plain]
    if missing and plain.isdisjoint(("text", "chosen", "messages", "conversations", "prompt")):
        raise DataError(
            f"{path}: the columns {', '.join(missing)} are missing; found {shown_names(found)}. Is the delimiter a "
            "comma, semicolon, tab or vertical bar? Name other columns: python scripts/prepare_csv.py --csv_path "
            f"{path} --instruction_column NAME --output_column NAME"
        )


def _source(
    name: str,
    files: Sequence[Path],
    read: Callable[..., Iterator[Any]],
    columns: Mapping[str, str],
    has_lines: Callable[[Path], bool] = lambda path: False,
) -> Source:
    digest = digest_of_files(files)
    parts = [FilePart(tuple(slices), read) for slices in _grouped(files, has_lines)]
    return Source(name, digest, parts, columns)


def _grouped(files: Iterable[Path], has_lines: Callable[[Path], bool]) -> Iterator[list[Slice]]:
    """Yield parts of about `PART_BYTES`. A file of JSON lines is divided; of others, small ones are put together."""
    group, size = [], 0
    for file in files:
        n_bytes = file.stat().st_size
        if n_bytes > PART_BYTES and has_lines(file):
            bounds = [*range(0, n_bytes, PART_BYTES), n_bytes]
            pieces = [(Slice(file, begin, end), end - begin) for begin, end in pairwise(bounds)]
        else:
            pieces = [(Slice(file), n_bytes)]
        for slice, n_bytes in pieces:
            if group and size + n_bytes > PART_BYTES:
                yield group
                group, size = [], 0
            group.append(slice)
            size += n_bytes
    yield group


def digest_of_files(files: Sequence[Path]) -> str:
    """Return the sha256 of one file, or that of the digests of several. Raise FileNotFoundError if one does not exist."""
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist")
    digests = [digest_of(file, "0" * 64) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
