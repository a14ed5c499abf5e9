"""Files of rows, read as a stream, and the record that a row stands for."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]
CHUNK = 2**16  # characters
COMPRESSED = {b"\x1f\x8b": "gzip", b"PK": "zip", b"BZ": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz"}


def rows_of(path: Path) -> Iterator[Any]:
    """Rows of a file: CSV, parquet, JSON list or JSON lines, by its name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with the place, for what cannot be read.
    """
    if path.suffix == ".csv":
        return csv_rows(path)
    return parquet_rows(path) if path.suffix == ".parquet" else json_rows(path)


def open_text(path: Path) -> IO[str]:
    """Raises ValueError for a compressed file: what it would grow to is not known before it is there."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with path.open("rb") as file:
        start = file.read(6)
    for magic, kind in COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(f"{path} is compressed ({kind}). Decompress it first")
    return path.open(encoding="utf-8-sig", newline="")


def json_rows(path: Path) -> Iterator[Any]:
    """Rows of a JSON list, or of JSON lines."""
    with open_text(path) as file:
        try:
            first = next((c for c in iter(lambda: file.read(1), "") if not c.isspace()), "")
            file.seek(0)
            yield from _list_items(path, file) if first == "[" else _lines(path, file)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from error


def _lines(path: Path, file: IO[str]) -> Iterator[Any]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield json.loads(line.rstrip())
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}:{error.colno}: not JSON ({error.msg})") from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: not read ({_limit(error)})") from error


def _limit(error: Exception) -> str:
    """Which limit of Python a JSON text exceeds."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]


def _list_items(path: Path, file: IO[str]) -> Iterator[Any]:
    """Items of one JSON list, one in memory at a time."""
    decoder = json.JSONDecoder()
    text, at, line, column, size, ended = file.read(CHUNK), 0, 1, 1, CHUNK, False

    def advance(to: int) -> None:
        nonlocal at, line, column
        breaks = text.count("\n", at, to)
        column = to - text.rfind("\n", at, to) if breaks else column + to - at
        line, at = line + breaks, to

    def skip(characters: str) -> str:
        """Go on to the first other character, and return it."""
        nonlocal text, at
        while True:
            to = at
            while to < len(text) and text[to] in characters:
                to += 1
            advance(to)
            if at < len(text):
                return text[at]
            text, at = file.read(CHUNK), 0
            if not text:
                return ""

    def wrong(message: str) -> ValueError:
        return ValueError(f"{path}:{line}:{column}: not JSON ({message})")

    space = " \t\r\n"
    skip(space + "\ufeff")
    advance(at + 1)
    found = skip(space)
    while found != "]":
        try:
            item, end = decoder.raw_decode(text, at)
            if end == len(text) and not ended:  # a number may go on in the next chunk
                raise json.JSONDecodeError("cut", text, end)
        except json.JSONDecodeError as error:
            more = "" if ended else file.read(size)
            if more:
                text, at, size = text[at:] + more, 0, size * 2  # doubled, so that a long row is not parsed too often
                continue
            if not ended:
                ended = True
                continue
            advance(min(error.pos, len(text)))
            raise wrong(error.msg) from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{line}:{column}: not read ({_limit(error)})") from error
        yield item
        advance(end)
        text, at, size = text[at:], 0, CHUNK
        found = skip(space)
        if found == ",":
            advance(at + 1)
            skip(space)
        elif found != "]":
            raise wrong("expecting ',' delimiter" if found else "the list does not end")
    advance(at + 1)
    if skip(space):
        raise wrong("extra data behind the list")


def csv_rows(path: Path) -> Iterator[Row]:
    """Rows of a CSV file with a header. Cells beyond its columns come under None."""
    csv.field_size_limit(sys.maxsize)
    line = 1
    with open_text(path) as file:
        try:
            reader = csv.DictReader(file, strict=True)
            if reader.fieldnames is None:
                raise ValueError(f"{path}: the columns of a header are missing; found none")
            line += reader.line_num
            for row in reader:
                yield row
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from error
        except csv.Error as error:
            raise ValueError(f"{path}:{line}: not CSV ({error})") from error


def csv_columns(path: Path) -> list[str]:
    """Names in the header of a CSV file."""
    csv.field_size_limit(sys.maxsize)
    with open_text(path) as file:
        try:
            return next(csv.reader(file, strict=True), [])
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from error
        except csv.Error as error:
            raise ValueError(f"{path}:1: not CSV ({error})") from error


def parquet_rows(path: Path) -> Iterator[Row]:
    """Rows of a parquet file, a batch in memory at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path}: reading parquet needs pyarrow: pip install pyarrow") from error
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error


def text_rows(path: Path, separator: str | None, chunk_chars: int) -> Iterator[Row]:
    """Documents of a text file, cut at ends of paragraphs, lines or words into rows of at most `chunk_chars` characters.

    Args:
        separator: What stands between two documents; None: the file is one.
    """
    with open_text(path) as file:
        try:
            for document in _documents(file, separator):
                yield from _chunks(document, chunk_chars)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from error


def _documents(file: IO[str], separator: str | None) -> Iterator[Iterator[str]]:
    """For each document the parts that it is read in."""
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


def _not_utf8(path: Path, error: UnicodeDecodeError) -> ValueError:
    return ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8")
