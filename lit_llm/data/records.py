"""Records of a data file: the fields of a row, and which of them are prompts and answers."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_llm.data.file_readers import parse_line
from lit_llm.errors import DataError
from lit_llm.text.conversation import check_messages, question
from lit_llm.text.styles import Message

Record = dict[str, Any]


PAIR = ("prompt", "chosen", "rejected")


def read_records(path: Path) -> list[Record]:
    """Return all records of a `.jsonl` file; see `iter_records`."""
    return list(iter_records(path))


def iter_records(path: Path) -> Iterator[Record]:
    """Yield the records of a `.jsonl` file, one JSON object per line.

    Raises:
        FileNotFoundError: if the file does not exist.
        DataError: with file and line, if a line is not a complete record in JSON and UTF-8, or if there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Write it with a prepare script, e.g. scripts/prepare_alpaca.py")
    found = False
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                record = parse_line(place, line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{place}: not UTF-8 ({error.reason} at byte {error.start})") from error
            try:
                check_record(record)
            except ValueError as error:
                raise DataError(f"{place}: {error}") from error
            found = True
            yield record
    if not found:
        raise DataError(f"{path} is empty: there is nothing to train on")


def check_record(record: Any) -> None:
    """Raise DataError unless `record` is a complete instruction row, conversation, text or preference pair."""
    if not isinstance(record, dict):
        raise DataError(f"a record must be a JSON object, found {type(record).__name__}")
    if "chosen" not in record and "messages" in record:
        check_messages(record["messages"])
        check_trained(record["messages"])
        if all(turn.get("weight") == 0 for turn in record["messages"] if turn["role"] == "assistant"):
            raise DataError("every answer has weight 0: nothing would be trained")
        _check_ignored(record, "messages", "system")
        return
    required = ("text",) if "text" in record else PAIR if "chosen" in record else ("instruction", "output")
    for name in required:
        if name not in record:
            raise DataError(f"the record has no {name!r}; found {', '.join(map(repr, record)) or 'nothing'}")
        if name == "prompt" and isinstance(record[name], list):
            check_messages([*record[name], {"role": "assistant", "content": "-"}])
            check_trained(record[name])
            _check_ignored(record, "prompt", "system", "input")
            continue
        if not isinstance(record[name], str):
            raise DataError(f"{name!r} must be a string, found {json.dumps(record[name])[:40]}")
        if not record[name].strip():
            raise DataError(f"{name!r} is empty")
    for name in ("input", "system"):
        if not isinstance(record.get(name) or "", str):
            raise DataError(f"{name!r} must be a string")
    if "text" not in record and record.get("history"):
        raise DataError("'history' is ignored in a record. Write it as turns of 'messages', or of the 'prompt' of a pair")


def check_trained(turns: Iterable[Mapping[str, Any]]) -> None:
    """Raise DataError for a turn whose OpenAI fields (weight, tool calls) training cannot follow."""
    for turn in turns:
        if turn.get("weight") not in (None, 0, 1):
            raise DataError(f"a turn has weight {json.dumps(turn['weight'])[:40]}. Use 0 or 1")
        if turn.get("tool_calls") or turn.get("function_call"):
            raise DataError("a turn calls a tool, which would be ignored")


def _check_ignored(record: Record, turns: str, *names: str) -> None:
    for name in names:
        if record.get(name):
            raise DataError(f"{name!r} is ignored when {turns!r} holds turns. Write it as one of the turns")


def asked(record: Record) -> list[Message]:
    """Return the conversation that a record, except plain text, asks to continue."""
    if "chosen" not in record and "messages" in record:
        return record["messages"][:-1]
    asks = record["prompt" if "chosen" in record else "instruction"]
    return asks if isinstance(asks, list) else question(asks, record.get("input") or "", record.get("system") or "")


def answer_of(record: Record) -> str:
    """Return the answer to `asked` in a record, except plain text."""
    if "chosen" in record:
        return record["chosen"]
    return record["messages"][-1]["content"] if "messages" in record else record["output"]
