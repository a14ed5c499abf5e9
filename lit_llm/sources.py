"""Files of rows, read as a stream, and the record that a row stands for."""

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lit_llm.data import Record, check_record, check_trained
from lit_llm.text.styles import split_system

Row = dict[str, Any]
CHUNK = 2**16  # characters
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
         "bot": "assistant", "model": "assistant", "system": "system"}  # fmt: skip
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


def to_record(row: Any, columns: dict[str, str]) -> Record:
    """The record of a row: instruction, conversation (`messages`, ShareGPT's `conversations`), preference pair or text.

    Args:
        columns: Name of the row's column for each of instruction, input, output and system.

    Raises:
        ValueError: with the reason, if the row is incomplete.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row must be an object, found {type(row).__name__}")
    if None in row:
        raise ValueError("the row has more cells than there are columns")
    if "chosen" in row:
        record = _pair(row, columns)
    elif turns := row.get("messages") or row.get("conversations"):
        record = {"messages": _messages(turns, row.get(columns["system"]))}
    elif "text" in row and columns["instruction"] not in row:
        record = {"text": row["text"], **({"continues": True} if row.get("continues") else {})}
    else:
        record = {name: row[column] for name, column in columns.items() if column in row}
        for name in ("input", "system"):
            if record.get(name) is None:
                record.pop(name, None)
        if "instruction" in record and "output" in record:
            record.setdefault("input", "")
        if earlier := _history(row):
            check_record(record)
            question = {"role": "user", "content": _joined(record["instruction"], record["input"])}
            turns = [*earlier, question, {"role": "assistant", "content": record["output"]}]
            record = {"messages": _messages(turns, record.get("system"))}
    check_record(record)
    return record


def _history(row: Row) -> list[dict[str, Any]]:
    """Turns before the row's own, which it holds as pairs of question and answer; as JSON, if a table holds it. A column of
    that name which holds other text means something else."""
    pairs = row.get("history") or []
    if isinstance(pairs, str):
        if not pairs.lstrip().startswith("["):
            return []
        with suppress(json.JSONDecodeError):
            pairs = json.loads(pairs)
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError("'history' must be a list of questions, each with its answer")
    return _messages([text for pair in pairs for text in pair], None)


def _joined(question: Any, further: Any) -> Any:
    return f"{question}\n\n{further}" if further else question


def _pair(row: Row, columns: dict[str, str]) -> Record:
    """Answers as texts, or as the last of their turns; the prompt as a text, as turns, or as the turns before the answers.

    Raises:
        ValueError: with the reason, if the row tells of its prompt more than once, and not the same.
    """
    system, further = (row.get(columns[name]) for name in ("system", "input"))
    earlier = _history(row)
    prompts = {}
    for name in ("prompt", columns["instruction"], "conversations"):
        if value := row.get(name):
            own = {"role": "user", "content": _joined(value, further) if earlier else value}
            prompts[name] = _messages(value if isinstance(value, list) else [*earlier, own], system)

    def answer(name: str) -> Any:
        turns = row.get(name)
        if isinstance(turns, dict):
            turns = [turns]
        if not isinstance(turns, list) or not turns:
            return turns
        *before, last = _messages(turns, None)
        if last.get("weight") == 0:
            raise ValueError(f"the answer of {name!r} has weight 0")
        if last["role"] not in ("assistant", None):
            raise ValueError(f"the last turn of {name!r} is not the assistant's")
        if before:
            prompts[name] = _messages(before, system)
        return last["content"]

    record = {"chosen": answer("chosen"), "rejected": answer("rejected")}
    if not prompts:
        raise ValueError("the pair has no 'prompt'")
    (first, prompt), *others = prompts.items()
    for name, turns in others:
        if turns != prompt:
            raise ValueError(f"{first!r} and {name!r} do not tell the same conversation")
    if (further or earlier) and any(isinstance(row[name], list) for name in prompts):
        raise ValueError("'input' or 'history' stands beside turns")
    opening, turns = split_system(prompt)
    if [turn["role"] for turn in turns] != ["user"]:
        return {"prompt": prompt, **record}
    asked = {"prompt": turns[0]["content"], "input": further, "system": opening}
    return {**{name: value for name, value in asked.items() if value}, **record}


def _messages(turns: Any, system: Any) -> list[dict[str, Any]]:
    """Turns with role and content; LIMA's bare texts are user and assistant in turn."""
    if not isinstance(turns, list):
        raise ValueError("'messages' must be a list of turns")
    if any(isinstance(turn, str) for turn in turns):
        turns = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    if not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("a turn must have a 'role' and a 'content'")
    check_trained(turns)
    messages = [
        {"role": turn.get("role", turn.get("from")), "content": turn.get("content", turn.get("value"))} for turn in turns
    ]
    for message in messages:
        if isinstance(message["role"], str):
            message["role"] = ROLES.get(message["role"], message["role"])
    for message, turn in zip(messages, turns, strict=True):
        if message["role"] == "assistant" and turn.get("weight") == 0:
            message["weight"] = 0
    if not system or (messages and messages[0] == {"role": "system", "content": system}):
        return messages
    if messages and messages[0]["role"] == "system":
        raise ValueError("a system text stands beside turns that begin with another")
    return [{"role": "system", "content": system}, *messages]
