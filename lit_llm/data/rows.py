"""Map rows in the formats that people publish to records."""

import json
from contextlib import suppress
from typing import Any

from lit_llm.data.file_readers import Row
from lit_llm.data.records import Record, check_record, check_trained
from lit_llm.errors import DataError
from lit_llm.text.styles import split_system

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
         "bot": "assistant", "model": "assistant", "system": "system"}  # fmt: skip


def to_record(row: Any, columns: dict[str, str]) -> Record:
    """Return the record of a row: instruction, conversation (`messages`, ShareGPT's `conversations`), preference pair or text.

    Args:
        columns: Column of the row for each of instruction, input, output and system.

    Raises:
        DataError: with the reason, if the row is incomplete.
    """
    if not isinstance(row, dict):
        raise DataError(f"a row must be an object, found {type(row).__name__}")
    if None in row:
        raise DataError("the row has more cells than there are columns")
    if "chosen" in row:
        record = _pair(row, columns)
    elif turns := row.get("messages") or row.get("conversations"):
        record = {"messages": _messages(turns, row.get(columns["system"]))}
    elif "text" in row and columns["instruction"] not in row:
        record = {"text": row["text"], **({"continues": True} if row.get("continues") else {})}
    else:
        record = _instruction(row, columns)
    check_record(record)
    return record


def _instruction(row: Row, columns: dict[str, str]) -> Record:
    """Return an instruction record, or a conversation if the row has a history."""
    record = {name: row[column] for name, column in columns.items() if column in row}
    for name in ("input", "system"):
        if record.get(name) is None:
            record.pop(name, None)
    if "instruction" in record and "output" in record:
        record.setdefault("input", "")
    if not (earlier := _history(row)):
        return record
    check_record(record)
    question = {"role": "user", "content": _joined(record["instruction"], record["input"])}
    turns = [*earlier, question, {"role": "assistant", "content": record["output"]}]
    return {"messages": _messages(turns, record.get("system"))}


def _history(row: Row) -> list[dict[str, Any]]:
    """Return the turns before the row's own, given as pairs of question and answer; a table holds them as JSON.

    A column of that name with any other string has another meaning, and is ignored.
    """
    pairs = row.get("history") or []
    if isinstance(pairs, str):
        if not pairs.lstrip().startswith("["):
            return []
        with suppress(json.JSONDecodeError):
            pairs = json.loads(pairs)
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise DataError("'history' must be a list of questions, each with its answer")
    return _messages([text for pair in pairs for text in pair], None)


def _joined(question: Any, further: Any) -> Any:
    return f"{question}\n\n{further}" if further else question


def _pair(row: Row, columns: dict[str, str]) -> Record:
    """Return the preference pair of a row.

    Answers are strings, or the last of their turns. The prompt is a string, turns, or the turns before the answers; every
    place that has it must agree.
    """
    system, further, earlier = row.get(columns["system"]), row.get(columns["input"]), _history(row)
    prompts = {}
    for name in ("prompt", columns["instruction"], "conversations"):
        if value := row.get(name):
            own = {"role": "user", "content": _joined(value, further) if earlier else value}
            prompts[name] = _messages(value if isinstance(value, list) else [*earlier, own], system)
    answers = {}
    for name in ("chosen", "rejected"):
        answers[name], before = _answer(row, name)
        if before:
            prompts[name] = _messages(before, system)
    prompt = _agreed(prompts)
    if (further or earlier) and any(isinstance(row[name], list) for name in prompts):
        raise DataError("'input' or 'history' is ignored when the prompt holds turns. Write it as one of the turns")
    opening, turns = split_system(prompt)
    if [turn["role"] for turn in turns] != ["user"]:
        return {"prompt": prompt, **answers}
    asked = {"prompt": turns[0]["content"], "input": further, "system": opening}
    return {**{name: value for name, value in asked.items() if value}, **answers}


def _answer(row: Row, name: str) -> tuple[Any, list[dict[str, Any]]]:
    """Return an answer of a pair, and the turns before it."""
    turns = row.get(name)
    if isinstance(turns, dict):
        turns = [turns]
    if not isinstance(turns, list) or not turns:
        return turns, []
    *before, last = _messages(turns, None)
    if last.get("weight") == 0:
        raise DataError(f"the answer of {name!r} has weight 0")
    if last["role"] not in ("assistant", None):
        raise DataError(f"the last turn of {name!r} is not the assistant's")
    return last["content"], before


def _agreed(prompts: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the only prompt. Raises DataError if there is none, or if two places differ."""
    if not prompts:
        raise DataError("the pair has no 'prompt'")
    (first, prompt), *others = prompts.items()
    for name, turns in others:
        if turns != prompt:
            raise DataError(f"{first!r} and {name!r} hold different conversations")
    return prompt


def _messages(turns: Any, system: Any) -> list[dict[str, Any]]:
    """Return turns with role and content. Plain strings (LIMA) are user and assistant in turn."""
    if not isinstance(turns, list):
        raise DataError("'messages' must be a list of turns")
    if any(isinstance(turn, str) for turn in turns):
        turns = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    if not all(isinstance(turn, dict) for turn in turns):
        raise DataError("a turn must have a 'role' and a 'content'")
    check_trained(turns)
    messages: list[dict[str, Any]] = []
    for turn in turns:
        role = turn.get("role", turn.get("from"))
        role = ROLES.get(role, role) if isinstance(role, str) else role
        untrained = {"weight": 0} if role == "assistant" and turn.get("weight") == 0 else {}
        messages.append({"role": role, "content": turn.get("content", turn.get("value")), **untrained})
    if not system or (messages and messages[0] == {"role": "system", "content": system}):
        return messages
    if messages and messages[0]["role"] == "system":
        raise DataError("the row has a system prompt, but its turns begin with another")
    return [{"role": "system", "content": system}, *messages]
