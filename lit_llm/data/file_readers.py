"""Readers that stream the rows of JSON, CSV and text files."""

import csv
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lit_llm.data.streams import BLANK, compression, format_of, open_bytes, open_text
from lit_llm.data.table_files import ARROW, arrow_rows, check_unique, parquet_rows
from lit_llm.errors import DataError
from lit_llm.schema import shown

Row = dict[str, Any]
CHUNK = 2**16  # characters
MAX_LENGTH = 2**28
"""Longest line, cell or item. Without it a compressed file of a few kB could fill the memory."""
TOO_LONG = f"longer than {MAX_LENGTH:,} characters"
DELIMITERS = ",;\t|"


def is_csv(path: Path) -> bool:
    return format_of(path) in (".csv", ".tsv")


def rows_of(path: Path, begin: int = 0, end: int | None = None) -> Iterator[Any]:
    """Yield the rows of a CSV, parquet, Arrow, JSON or JSON lines file; the suffix decides.

    A row that cannot be used is a DataError with the reason, which `to_record` raises.

    Args:
        begin: Yield only the lines that start in the bytes from `begin` to `end`. Only for files that `has_lines` accepts.

    Raises:
        FileNotFoundError: if the file does not exist.
        DataError: with the position, if the file cannot be read.
    """
    if is_csv(path):
        return csv_rows(path)
    if format_of(path) in ARROW:
        return arrow_rows(path)
    return parquet_rows(path) if format_of(path) == ".parquet" else json_rows(path, begin, end)


def json_rows(path: Path, begin: int = 0, end: int | None = None) -> Iterator[Any]:
    """Yield the rows of a JSON list, or of JSON lines; see `rows_of`."""
    if not begin and _first_byte(path) == b"[":
        with open_text(path) as text:
            yield from _list_items(path, text)
    else:
        yield from (value for _, value in json_lines(path, begin, end))


def has_lines(path: Path) -> bool:
    """Return whether a file that is not compressed holds JSON lines, each readable alone."""
    is_json = not is_csv(path) and format_of(path) not in (".parquet", *ARROW)
    return is_json and compression(path) is None and _first_byte(path) != b"["


def _first_byte(path: Path) -> bytes:
    """Return the first byte of a file that is not blank; it is empty if there is none."""
    with open_bytes(path) as file:
        return next((byte for byte in iter(lambda: file.read(1), b"") if byte not in BLANK), b"")


def json_lines(path: Path, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each line of JSON that is not blank; see `rows_of`. Numbers count from `begin`."""
    with open_bytes(path) as file:
        if begin:
            file.seek(begin - 1)
            begin += len(file.readline()) - 1
        at, number = begin, 0
        while end is None or at < end:
            line = file.readline(MAX_LENGTH)
            if not line:
                break
            at, number = at + len(line), number + 1
            try:
                value = _parse_line(line, "utf-8" if at > len(line) else "utf-8-sig")
            except DataError as error:
                raise DataError(f"{path}:{number + _n_lines(path, begin)}{error}") from error
            if value is not BLANK:
                yield number, value


def _n_lines(path: Path, end: int) -> int:
    """Return the number of lines in the first `end` bytes."""
    with open_bytes(path) as file:
        return sum(file.read(min(CHUNK, end - at)).count(b"\n") for at in range(0, end, CHUNK))


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


def _parse_line(line: bytes, encoding: str) -> Any:
    """Return the value of a line, or BLANK. Raises DataError with the rest of its place and the reason."""
    try:
        if len(line) == MAX_LENGTH:
            raise ValueError(TOO_LONG)
        text = line.decode(encoding)
        return parse_value(text.rstrip()) if text.strip() else BLANK
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start} of the line"
        raise DataError(f": not UTF-8 ({reason}). Save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(f":{error.colno}: not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f": not read ({_limit(error)})") from error


def _limit(error: Exception) -> str:
    """Return which limit the JSON exceeds."""
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
            if len(self.text) - self.at > MAX_LENGTH:
                raise DataError(f"{self.path}:{self.line}:{self.column}: not read ({TOO_LONG})")
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
    check_unique(path, columns)
    return columns


def _csv_lines(path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_LENGTH)
    delimiter, first_line = max(DELIMITERS, key=lambda delimiter: _n_columns(path, delimiter)), 1  # the first of equals
    with open_text(path) as file:
        reader = csv.reader(_short_lines(path, file), delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                yield cells
                first_line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}:{first_line}: not CSV ({error})") from error


def _n_columns(path: Path, delimiter: str) -> int:
    """Return the number of columns that a delimiter makes of the header."""
    with open_text(path) as file, suppress(csv.Error):
        return len(next(csv.reader(_short_lines(path, file), delimiter=delimiter, strict=True), []))
    return 0


def _short_lines(path: Path, file: IO[str]) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: file.readline(MAX_LENGTH), ""), 1):
        if len(line) == MAX_LENGTH:
            raise DataError(f"{path}:{number}: not read ({TOO_LONG})")
        yield line


def text_rows(path: Path, separator: str | None, chunk_chars: int) -> Iterator[Row]:
    """Yield rows of at most `chunk_chars` characters, cut at the ends of paragraphs, lines or words.

    Args:
        separator: String between two documents. If None, the file is one document.
    """
    with open_text(path) as file:
        for document in _documents(path, file, separator):
            yield from _chunks(document, chunk_chars)


def _documents(path: Path, file: IO[str], separator: str | None) -> Iterator[Iterator[str]]:
    """Yield an iterator over the parts of each document."""
    if separator is None:
        yield iter(lambda: file.read(CHUNK), "")
        return
    text = ""
    while more := file.read(CHUNK):
        *whole, text = (text + more).split(separator)
        if len(text) > MAX_LENGTH:
            raise DataError(f"{path}: not read (a document is {TOO_LONG}). Is `separator` right?")
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
