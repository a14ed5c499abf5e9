"""Readers that stream the rows of JSON, CSV, parquet and text files."""

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lit_llm.errors import DataError

Row = dict[str, Any]
CHUNK = 2**16  # characters
COMPRESSED = {b"\x1f\x8b": "gzip", b"PK": "zip", b"BZ": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz"}


def rows_of(path: Path) -> Iterator[Any]:
    """Yield the rows of a CSV, parquet, JSON or JSON lines file; the suffix decides.

    Raises:
        FileNotFoundError: if the file does not exist.
        DataError: with the position, if the file cannot be read.
    """
    if path.suffix == ".csv":
        return csv_rows(path)
    return parquet_rows(path) if path.suffix == ".parquet" else json_rows(path)


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a UTF-8 file. Compressed files are refused: how large their content is shows only after it is read."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with path.open("rb") as file:
        start = file.read(6)
    for magic, kind in COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(f"{path} is compressed ({kind}). Decompress it first")
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            yield text
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8") from error


def json_rows(path: Path) -> Iterator[Any]:
    """Yield the rows of a JSON list, or of JSON lines."""
    with open_text(path) as file:
        first = next((c for c in iter(lambda: file.read(1), "") if not c.isspace()), "")
        file.seek(0)
        if first == "[":
            yield from _list_items(path, file)
        else:
            yield from (parse_line(f"{path}:{number}", line) for number, line in enumerate(file, 1) if line.strip())


def parse_line(place: str, line: str) -> Any:
    """Parse a line of JSON. Raises DataError, which starts with `place`."""
    try:
        return json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        raise DataError(f"{place}:{error.colno}: not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not read ({_limit(error)})") from error


def _limit(error: Exception) -> str:
    """Return which limit of Python the JSON exceeds."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]


def _list_items(path: Path, file: IO[str]) -> Iterator[Any]:
    """Yield the items of one JSON list, with one in memory at a time."""
    window = _Window(path, file)
    window.next_character("\ufeff")
    window.advance()  # [
    after = window.next_character()
    while after != "]":
        yield window.parse()
        after = window.next_character()
        if after == ",":
            window.advance()
        elif after != "]":
            raise window.error("expecting ',' delimiter" if after else "the list does not end")
    window.advance()
    if window.next_character():
        raise window.error("extra data behind the list")


class _Window:
    """The part of a JSON file that is in memory, and the position of the next character in it and in the file."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path, self.file = path, file
        self.text, self.at, self.line, self.column = "", 0, 1, 1

    def error(self, message: str) -> DataError:
        return DataError(f"{self.path}:{self.line}:{self.column}: not JSON ({message})")

    def advance(self, n: int = 1) -> None:
        end = self.at + n
        breaks = self.text.count("\n", self.at, end)
        self.column = end - self.text.rfind("\n", self.at, end) if breaks else self.column + n
        self.line, self.at = self.line + breaks, end

    def read(self, size: int) -> bool:
        """Drop the characters before the position and read more behind it. Returns False at the end of the file."""
        more = self.file.read(size)
        self.text, self.at = self.text[self.at :] + more, 0
        return bool(more)

    def next_character(self, ignored: str = "") -> str:
        """Advance behind whitespace and return the next character; it is empty at the end of the file."""
        while True:
            end = self.at
            while end < len(self.text) and self.text[end] in " \t\r\n" + ignored:
                end += 1
            self.advance(end - self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.read(CHUNK):
                return ""

    def parse(self) -> Any:
        """Return the next value and advance behind it.

        Parsing is tried again with more text until it succeeds; the steps double, so that a row of n characters costs O(n).
        """
        self.next_character()
        size, at_end = CHUNK, False
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.at)
                if at_end or end < len(self.text):  # a number may continue in the next chunk
                    self.advance(end - self.at)
                    return value
            except json.JSONDecodeError as error:
                if at_end:
                    self.advance(min(error.pos, len(self.text)) - self.at)
                    raise self.error(error.msg) from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{self.path}:{self.line}:{self.column}: not read ({_limit(error)})") from error
            at_end = not self.read(size)
            size *= 2


def csv_columns(path: Path) -> list[str]:
    """Return the names in the header of a CSV file."""
    return next(_csv_lines(path), [])


def csv_rows(path: Path) -> Iterator[dict[Any, Any]]:
    """Yield the rows of a CSV file with a header. Missing cells are None; cells beyond the header are a list under None."""
    lines = _csv_lines(path)
    columns = next(lines, None)
    if columns is None:
        raise DataError(f"{path}: the columns of a header are missing; found none")
    for cells in filter(None, lines):
        row: dict[Any, Any] = dict(zip(columns, cells, strict=False))
        if len(cells) > len(columns):
            row[None] = cells[len(columns) :]
        yield row | dict.fromkeys(columns[len(cells) :])


def _csv_lines(path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(sys.maxsize)
    first_line = 1
    with open_text(path) as file:
        reader = csv.reader(file, strict=True)
        try:
            for cells in reader:
                yield cells
                first_line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}:{first_line}: not CSV ({error})") from error


def parquet_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a parquet file, with one batch in memory at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path}: reading parquet needs pyarrow: pip install pyarrow") from error
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a parquet file: {error}") from error


def text_rows(path: Path, separator: str | None, chunk_chars: int) -> Iterator[Row]:
    """Yield rows of at most `chunk_chars` characters, cut at the ends of paragraphs, lines or words.

    Args:
        separator: String between two documents. If None, the file is one document.
    """
    with open_text(path) as file:
        for document in _documents(file, separator):
            yield from _chunks(document, chunk_chars)


def _documents(file: IO[str], separator: str | None) -> Iterator[Iterator[str]]:
    """Yield an iterator over the parts of each document."""
    if separator is None:
        yield iter(lambda: file.read(CHUNK), "")
        return
    text = ""
    while more := file.read(CHUNK):
        *whole, text = (text + more).split(separator)
        yield from (iter((document,)) for document in whole)
    yield iter((text,))


def _chunks(parts: Iterator[str], chunk_chars: int) -> Iterator[Row]:
    text = ""
    for part in parts:
        text += part
        while len(text) > chunk_chars:
            cuts = (text.rfind(mark, chunk_chars // 2, chunk_chars) + len(mark) for mark in ("\n\n", "\n", " "))
            cut = next((cut for cut in cuts if cut > chunk_chars // 2), chunk_chars)
            yield {"text": text[:cut], "continues": True}
            text = text[cut:]
    if text.strip():
        yield {"text": text}
