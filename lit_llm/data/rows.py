"""Map rows in the formats that people publish to records."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from lit_llm.data.file_readers import Row, json_lines, parse_value
from lit_llm.data.records import VARIABLES, Record, check_record, check_trained, stored_variables
from lit_llm.data.tool_calls import from_hermes, to_tools, tools_in_system, with_calls
from lit_llm.errors import DataError
from lit_llm.schema import shown
from lit_llm.text.conversation import MEANT
from lit_llm.text.styles import split_system
from lit_llm.text.thoughts import Form, in_form

COLUMNS = {name: name for name in ("instruction", "input", "output", "system")}
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
         "bot": "assistant", "model": "assistant", "system": "system", "developer": "system", "function_call": "assistant",
         "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool"}  # fmt: skip
TURN = ("role", "from", "content", "value", "weight")
KNOWN = (
    "messages",
    "conversations",
    "history",
    "text",
    "continues",
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "label",
    "answer",
    *VARIABLES,
)
AS_JSON = ("messages", "conversations", "history", *VARIABLES)
"""Fields that tables hold as a string of JSON."""

SHOWN = 10


def read_records(path: Path) -> list[Record]:
    """Return all records of a `.jsonl` file; see `iter_records`."""
    return list(iter_records(path))


def iter_records(path: Path, ignored: Counter[str] | None = None) -> Iterator[Record]:
    """Yield the records of a `.jsonl` file, one JSON object per line.

    Args:
        ignored: Counts the rows with a field that is not part of their record, by its name.

    Raises:
        FileNotFoundError: if the file does not exist.
        DataError: with file and line, if a line is not a row in JSON and UTF-8, or if there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Write it with a prepare script, e.g. scripts/prepare_alpaca.py")
    found = False
    for number, row in json_lines(path):
        try:
            record = to_record(row, COLUMNS, ignored)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from error
        found = True
        yield record
    if not found:
        raise DataError(f"{path} is empty: there is nothing to train on")


def to_record(row: Any, columns: Mapping[str, str], ignored: Counter[str] | None = None) -> Record:
    """Return the record of a row: instruction, conversation (`messages`, ShareGPT's `conversations`), preference pair or text.

    A record is the record of itself. Case and surrounding spaces of the names of fields do not count.

    Args:
        columns: Column of the row for each of instruction, input, output and system.
        ignored: Counts the rows with a field that is not part of their record, by its name.

    Raises:
        DataError: with the reason, if the row is incomplete.
    """
    if isinstance(row, DataError):
        raise row
    if not isinstance(row, dict):
        raise DataError(f"a row must be a JSON object, found {json.dumps(row)[:40]}")
    if None in row:
        raise DataError("the row has more cells than there are columns")
    row = _with_known_names(row, (*KNOWN, *columns.values()))
    row |= {name: _from_json(row[name]) for name in AS_JSON if isinstance(row.get(name), str)}
    variables = stored_variables(row)
    if "tools" in variables:
        variables["tools"] = to_tools(variables["tools"])
    turns = next((name for name in ("messages", "conversations") if row.get(name) not in (None, "")), None)
    own = {columns["instruction"], columns["output"], "messages", "conversations"}
    if turns is None and columns["instruction"] not in row:
        turns = next((name for name in ("messages", "conversations") if name in row), None)
    more = Counter[str]()
    if "chosen" in row:
        record = _pair(row, columns, more)
        used = {*columns.values(), "prompt", "conversations", "chosen", "rejected"} - {columns["output"]}
    elif turns is None and "prompt" in row and own.isdisjoint(row) and ("completion" in row or "answer" in row):
        record = _unpaired(row, row.get(columns["system"]))
        used = {"prompt", "completion", "label", "answer", columns["system"]}
        used -= {"answer"} if "completion" in row else {"completion", "label"}
    elif turns is not None:
        messages = _messages(row[turns], row.get(columns["system"]))
        if listed := tools_in_system(messages):  # the chat template lists them in its own way
            variables.setdefault("tools", listed)
            messages = messages[1:]
            more["the system turn that lists tools"] += 1
        if "tools" in variables:
            messages = from_hermes(messages)
        record = {"messages": messages}
        used = {turns, columns["system"]}
    elif "text" in row and own.isdisjoint(row) and all(columns[name] == name for name in ("instruction", "output")):
        record = {"text": row["text"], **({"continues": True} if row.get("continues") else {})}
        variables, used = {}, {"text", "continues"}
    else:
        record = _instruction(row, columns)
        used = {*columns.values()}
    if isinstance(row.get("history"), list) and turns is None:
        used.add("history")
    record |= variables
    check_record(record)
    if ignored is not None:
        ignored.update(more.keys() | {name for name in row.keys() - used - variables.keys() if not _is_empty(row[name])})
    return record


def first_exchange(row: Any) -> Any:
    """Return a row whose `conversations` end after the first answer."""
    turns = row.get("conversations") if isinstance(row, dict) else None
    return {**row, "conversations": turns[:2]} if isinstance(turns, list) else row


def shown_names(names: Collection[str]) -> str:
    """Return the first of the names, to show to a person."""
    return ", ".join(map(shown, islice(names, SHOWN))) + (" and others" if len(names) > SHOWN else "") or "nothing"


def ignored_fields(ignored: Counter[str], unit: str = "rows") -> str:
    """Return a line that names the most frequent of the fields that are ignored."""
    most = sorted(ignored, key=lambda name: (-ignored[name], name))[:SHOWN]
    named = ", ".join(f"{shown(name)} ({ignored[name]:,} {unit})" for name in most)
    more = f" and {len(ignored) - SHOWN:,} others" if len(ignored) > SHOWN else ""
    return f"ignored fields: {named}{more}"


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def _with_known_names(row: Row, names: Collection[str]) -> Row:
    """Return a copy of a row in which names that differ from known ones by case or spaces only are replaced by these."""
    known, found = _by_plain_name(tuple(names)), {}
    for name, value in row.items():
        meant = known.get(name.strip().lower(), name)
        meant = name if meant in row else meant
        if meant in found:
            raise DataError(f"the row has the field {shown(meant)} twice, written differently")
        found[meant] = value
    return found


@cache
def _by_plain_name(names: tuple[str, ...]) -> dict[str, str]:
    return {name.strip().lower(): name for name in names}


def _from_json(value: str) -> Any:
    """Return the list or object that a string holds as JSON, else the string."""
    if value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        found = parse_value(value)
    except (ValueError, RecursionError):
        return value
    if isinstance(found, DataError):
        raise found
    return found


def _instruction(row: Row, columns: Mapping[str, str]) -> Record:
    """Return an instruction record, or a conversation if the row has a history."""
    for name in ("instruction", "output"):
        if columns[name] not in row:
            raise DataError(f"the record has no {columns[name]!r}; found {shown_names(row)}")
    record = {name: row[column] for name, column in columns.items() if column in row}
    for name in ("input", "system"):
        if record.get(name) is None:
            record.pop(name, None)
    record.setdefault("input", "")
    if not (earlier := _history(row)):
        return record
    check_record(record)
    question = {"role": "user", "content": _joined(record["instruction"], record["input"])}
    turns = [*earlier, question, {"role": "assistant", "content": record["output"]}]
    return {"messages": _messages(turns, record.get("system"))}


def _history(row: Row) -> list[dict[str, Any]]:
    """Return the turns before the row's own, given as pairs of question and answer.

    A column of that name with a string that is not a list of JSON has another meaning.
    """
    pairs = row.get("history") or []
    if isinstance(pairs, str) and not pairs.lstrip().startswith("["):
        return []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise DataError("'history' must be a list of questions, each with its answer")
    return _messages([text for pair in pairs for text in pair], None)


def _joined(question: Any, further: Any) -> Any:
    return f"{question}\n\n{further}" if further else question


def _pair(row: Row, columns: Mapping[str, str], ignored: Counter[str]) -> Record:
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
        answers[name], before = _answer(row, name, ignored)
        if before:
            prompts[name] = _messages(before, system)
    prompt = _agreed(prompts)
    if (further or earlier) and any(isinstance(row[name], list) for name in prompts):
        raise DataError("'input' or 'history' is ignored when the prompt holds turns. Write it as one of the turns")
    opening, turns = split_system(prompt)
    if [turn["role"] for turn in turns] != ["user"] or any(len(turn) > 2 for turn in prompt):
        return {"prompt": prompt, **answers}
    asked = {"prompt": turns[0]["content"], "input": further, "system": opening}
    return {**{name: value for name, value in asked.items() if value}, **answers}


def _unpaired(row: Row, system: Any) -> Record:
    """Return the record of an answer with a label (KTO), or of a question with a reference answer; without a label, an
    instruction or a conversation."""
    prompt, name = row["prompt"], "completion" if "completion" in row else "answer"
    answer = row[name]
    if isinstance(answer, list | dict):
        *before, last = _messages([answer] if isinstance(answer, dict) else answer, None)
        if before or last["role"] != "assistant" or last.keys() - {*TURN}:
            raise DataError(f"{name!r} must be a string or a turn of the assistant without further fields")
        answer = last["content"]
    if isinstance(prompt, list):
        prompt = _messages(prompt, system)
    elif system:
        prompt = _messages([{"role": "user", "content": prompt}], system)
    if name == "answer":
        return {"prompt": prompt, "answer": answer}
    if row.get("label") is not None:
        return {"prompt": prompt, "completion": answer, "label": row["label"]}
    if isinstance(prompt, list):
        return {"messages": [*prompt, {"role": "assistant", "content": answer}]}
    return {"instruction": prompt, "input": "", "output": answer}


def _answer(row: Row, name: str, ignored: Counter[str]) -> tuple[Any, list[dict[str, Any]]]:
    """Return an answer of a pair, and the turns before it."""
    if name not in row:
        raise DataError(f"the record has no {name!r}")
    turns = row[name]
    if isinstance(turns, dict):
        turns = [turns]
    if not isinstance(turns, list) or not turns:
        return turns, []
    *before, last = _messages(turns, None)
    if last.get("weight") == 0:
        raise DataError(f"the answer of {name!r} has weight 0")
    if last["role"] not in ("assistant", None):
        raise DataError(f"the last turn of {name!r} is not the assistant's")
    last = in_form(last, Form())
    more = last.keys() - {*TURN}
    if MEANT & more:
        lost = ", ".join(map(repr, sorted(MEANT & more)))
        raise DataError(f"an answer of a pair has {lost}, which would be ignored. Write it as a part of the content")
    ignored.update(more)
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
    """Return turns with role and content, and the other fields that are not empty: templates may render them.

    Plain strings (LIMA) are user and assistant in turn.
    """
    if not isinstance(turns, list):
        raise DataError("'messages' must be a list of turns")
    if any(isinstance(turn, str) for turn in turns):
        turns = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    if not all(isinstance(turn, dict) for turn in turns):
        raise DataError("a turn must have a 'role' and a 'content'")
    check_trained(turns)
    messages: list[dict[str, Any]] = []
    for turn in turns:
        role = _first_of(turn, "role", "from")
        given = role.strip().lower() if isinstance(role, str) else ""
        role = ROLES.get(given, role)
        untrained = {"weight": 0} if role == "assistant" and turn.get("weight") == 0 else {}
        more = {name: value for name, value in turn.items() if name not in TURN and not _is_empty(value)}
        content = _first_of(turn, "content", "value")
        if given == "function_call":
            content, more = "", {**more, "tool_calls": content}
        content = content if role == "tool" and not _is_parts(content) else _text(content)
        messages.append(with_calls({"role": role, "content": content, **untrained, **more}))
    if not system or (messages and messages[0] == {"role": "system", "content": system}):
        return messages
    if messages and messages[0]["role"] == "system":
        raise DataError("the row has a system prompt, but its turns begin with another")
    return [{"role": "system", "content": system}, *messages]


def _first_of(turn: Row, *names: str) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def _is_parts(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content)


def _text(content: Any) -> Any:
    """Return the content of a turn; parts of text are joined as templates do."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part for part in content]
    strings = [text for text in texts if isinstance(text, str)]
    if len(strings) < len(texts):
        raise DataError("a turn has a part that is not text")
    return "".join(strings)
