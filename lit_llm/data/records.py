"""Records of a data file: what a row may hold, and which parts of it are prompts and answers."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_llm.text.conversation import check_messages, question
from lit_llm.text.styles import Message

Record = dict[str, Any]


PAIR = ("prompt", "chosen", "rejected")


def read_records(path: Path) -> list[Record]:
    """All records of a `.jsonl` file; see `iter_records`."""
    return list(iter_records(path))


def iter_records(path: Path) -> Iterator[Record]:
    """Records of a `.jsonl` file, one JSON object a line.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with file and line, for a line that is not UTF-8, no JSON object or no complete record; if there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Write it with a prepare script, e.g. scripts/prepare_alpaca.py")
    found = False
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8").rstrip())
                check_record(record)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}:{error.colno}: not JSON ({error.msg})") from error
            except RecursionError as error:
                raise ValueError(f"{path}:{number}: not read (nested too deeply)") from error
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
            found = True
            yield record
    if not found:
        raise ValueError(f"{path} is empty: there is nothing to train on")


def check_record(record: Any) -> None:
    """Raises ValueError unless `record` is a complete instruction row, conversation, text or preference pair."""
    if not isinstance(record, dict):
        raise ValueError(f"a record must be a JSON object, found {type(record).__name__}")
    if "chosen" not in record and "messages" in record:
        check_messages(record["messages"])
        check_trained(record["messages"])
        if all(turn.get("weight") == 0 for turn in record["messages"] if turn["role"] == "assistant"):
            raise ValueError("every answer has weight 0: nothing would be trained")
        _check_beside(record, "system")
        return
    required = ("text",) if "text" in record else PAIR if "chosen" in record else ("instruction", "output")
    for name in required:
        if name not in record:
            raise ValueError(f"the record has no {name!r}; found {', '.join(map(repr, record)) or 'nothing'}")
        if name == "prompt" and isinstance(record[name], list):
            check_messages([*record[name], {"role": "assistant", "content": "-"}])
            check_trained(record[name])
            _check_beside(record, "system", "input")
            continue
        if not isinstance(record[name], str):
            raise ValueError(f"{name!r} must be a text, found {json.dumps(record[name])[:40]}")
        if not record[name].strip():
            raise ValueError(f"{name!r} is empty")
    for name in ("input", "system"):
        if not isinstance(record.get(name) or "", str):
            raise ValueError(f"{name!r} must be a text")
    if "text" not in record and record.get("history"):
        raise ValueError("'history' would be left out: write it as turns of 'messages', or of a pair's 'prompt'")


def check_trained(turns: Iterable[Mapping[str, Any]]) -> None:
    """Raises ValueError for a turn that is not to be trained as it stands, as the chat format of OpenAI can say."""
    for turn in turns:
        if turn.get("weight") not in (None, 0, 1):
            raise ValueError(f"a turn has weight {json.dumps(turn['weight'])[:40]}: 0 and 1 are known")
        if turn.get("tool_calls") or turn.get("function_call"):
            raise ValueError("a turn calls a tool, which would be left out")


def _check_beside(record: Record, *names: str) -> None:
    """Raises ValueError for a field beside turns that would not be a part of what is asked."""
    for name in names:
        if record.get(name):
            raise ValueError(f"{name!r} stands beside turns and would be left out: make it one of the turns")


def asked(record: Record) -> list[Message]:
    """The conversation that a record, which is not plain text, wants answered."""
    if "chosen" not in record and "messages" in record:
        return record["messages"][:-1]
    asks = record["prompt" if "chosen" in record else "instruction"]
    return asks if isinstance(asks, list) else question(asks, record.get("input") or "", record.get("system") or "")


def answer_of(record: Record) -> str:
    """The answer that a record, which is not plain text, has for `asked`."""
    if "chosen" in record:
        return record["chosen"]
    return record["messages"][-1]["content"] if "messages" in record else record["output"]
