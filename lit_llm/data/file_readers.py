"""Readers that stream the rows of JSON, CSV, parquet and text files."""

import codecs
import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lit_llm.errors import DataError
from lit_llm.schema import shown

Row = dict[str, Any]
CHUNK = 2**16  # characters
COMPRESSED = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz",
}  # fmt: skip
BLANK = codecs.BOM_UTF8 + b" \t\r\n"
DELIMITERS = ",;\t|"


def is_csv(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv")


def rows_of(path: Path) -> Iterator[Any]:
    """Yield the rows of a CSV, parquet, JSON or JSON lines file; the suffix decides.

    A row that cannot be used is a DataError with the reason, which `to_record` raises.

    Raises:
        FileNotFoundError: if the file does not exist.
        DataError: with the position, if the file cannot be read.
    """
    if is_csv(path):
        return csv_rows(path)
    return parquet_rows(path) if path.suffix.lower() == ".parquet" else json_rows(path)


def _check_readable(path: Path) -> None:
    """Refuse a compressed file: how large its content is shows only after it is read."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with path.open("rb") as file:
        start = file.read(6)
    for magic, kind in COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(f"{path} is compressed ({kind}). Decompress it first")


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a UTF-8 file, with or without a byte order mark."""
    _check_readable(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            yield text
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8") from error


def json_rows(path: Path) -> Iterator[Any]:
    """Yield the rows of a JSON list, or of JSON lines."""
    _check_readable(path)
    with path.open("rb") as file:
        first = next((byte for byte in iter(lambda: file.read(1), b"") if byte not in BLANK), b"")
    if first == b"[":
        with open_text(path) as text:
            yield from _list_items(path, text)
    else:
        yield from (value for _, value in json_lines(path))


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the value of each line of JSON that is not blank, after its place: the file and the line number."""
    _check_readable(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{place}: not UTF-8 ({error.reason} at byte {error.start} of the line). Save the file as UTF-8"
                ) from error
            if text.strip():
                yield place, _parse_line(place, text)


class _Decoder(json.JSONDecoder):
    """A decoder of one value. NaN and Infinity, which are not JSON and mean a missing value, become None."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object, parse_constant=lambda _: None)
        self._twice: list[str] = []

    def _object(self, pairs: list[tuple[str, Any]]) -> Row:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            self._twice += [name for name in found if names.count(name) > 1]
        return found

    def usable(self, value: Any) -> Any:
        """Return the value, or a DataError if a name occurs twice in one of its objects: which is meant cannot be known."""
        return DataError(f"the name {shown(self._twice[0])} occurs twice in one object") if self._twice else value


def parse_value(text: str) -> Any:
    """Parse one JSON value; see `_Decoder.usable`. Raises ValueError or RecursionError."""
    decoder = _Decoder()
    return decoder.usable(decoder.decode(text))


def _parse_line(place: str, line: str) -> Any:
    try:
        return parse_value(line.rstrip())
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
                decoder = _Decoder()
                value, end = decoder.raw_decode(self.text, self.at)
                if at_end or end < len(self.text):  # a number may continue in the next chunk
                    self.advance(end - self.at)
                    return decoder.usable(value)
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
    return _header(path, _csv_lines(path))


def csv_rows(path: Path) -> Iterator[dict[Any, Any]]:
    """Yield the rows of a CSV file with a header. Missing cells are None; cells beyond the header are a list under None."""
    lines = _csv_lines(path)
    columns = _header(path, lines)
    for cells in filter(None, lines):
        row: dict[Any, Any] = dict(zip(columns, cells, strict=False))
        if len(cells) > len(columns):
            row[None] = cells[len(columns) :]
        yield row | dict.fromkeys(columns[len(cells) :])


def _header(path: Path, lines: Iterator[list[str]]) -> list[str]:
    columns = next(lines, None)
    if columns is None:
        raise DataError(f"{path}: the columns of a header are missing; found none")
    _check_unique(path, columns)
    return columns


def _check_unique(path: Path, columns: list[str]) -> None:
    """Raise DataError for a name that two columns have, unless it is empty."""
    twice = [name for i, name in enumerate(columns) if name.strip() and name in columns[:i]]
    if twice:
        raise DataError(f"{path} has two columns with the same name: {shown(twice[0])}. Rename one of them")


def _csv_lines(path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(sys.maxsize)
    first_line = 1
    with open_text(path) as file:
        delimiter = max(DELIMITERS, key=lambda delimiter: _n_columns(file, delimiter))  # the first of equals
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                yield cells
                first_line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}:{first_line}: not CSV ({error})") from error


def _n_columns(file: IO[str], delimiter: str) -> int:
    """Return the number of columns that a delimiter makes of the header."""
    file.seek(0)
    with suppress(csv.Error):
        return len(next(csv.reader(file, delimiter=delimiter, strict=True), []))
    return 0


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
        file = pyarrow.parquet.ParquetFile(path)
        _check_unique(path, file.schema_arrow.names)
        for batch in file.iter_batches(1024):
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
