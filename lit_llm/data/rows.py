"""Rows as people publish them, mapped to records."""

import json
from contextlib import suppress
from typing import Any

from lit_llm.data.file_readers import Row
from lit_llm.data.records import Record, check_record, check_trained
from lit_llm.text.styles import split_system

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
         "bot": "assistant", "model": "assistant", "system": "system"}  # fmt: skip


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
