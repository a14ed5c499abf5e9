"""Records of a data file: the fields of a row, and which of them are prompts and answers."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lit_llm.errors import DataError
from lit_llm.text.conversation import question
from lit_llm.text.styles import Message
from lit_llm.text.turns import check_messages

Record = dict[str, Any]

PAIR = ("prompt", "chosen", "rejected")
FEEDBACK = ("prompt", "completion", "label")
REWARD = ("prompt", "answer")
VARIABLES = {"tools": list, "functions": list, "documents": list, "chat_template_kwargs": dict}
"""Fields next to the turns that chat templates read, and their types; the lists hold objects."""
RENDERED_ELSEWHERE = ("messages", "add_generation_prompt")


def check_record(record: Record) -> None:
    """Raise DataError unless `record` is complete: an instruction row, conversation, text, preference pair, an answer with a
    label, or a question with a reference answer."""
    check_unicode(record)
    if "chosen" not in record and "messages" in record:
        check_messages(record["messages"])
        check_trained(record["messages"])
        if all(turn.get("weight") == 0 for turn in record["messages"] if turn["role"] == "assistant"):
            raise DataError("every answer has weight 0: nothing would be trained")
        return
    required = ("text",) if "text" in record else PAIR if "chosen" in record else ("instruction", "output")
    required = unpaired_fields(record) or required
    for name in required:
        if name == "label":
            if not isinstance(record[name], bool):
                raise DataError(f"'label' must be true or false, found {json.dumps(record[name])[:40]}")
            continue
        if name == "prompt" and isinstance(record[name], list):
            check_messages([*record[name], {"role": "assistant", "content": "-"}])
            check_trained(record[name])
            continue
        if not isinstance(record[name], str):
            raise DataError(f"{name!r} must be a string, found {json.dumps(record[name])[:40]}")
        if not record[name].strip():
            raise DataError(f"{name!r} is empty")
    for name in ("input", "system"):
        if not isinstance(record.get(name) or "", str):
            raise DataError(f"{name!r} must be a string")


def unpaired_fields(record: Record) -> tuple[str, ...]:
    """Return the fields of a record with feedback on one answer, or with a reference to check answers with; else none."""
    return next((names for names in (FEEDBACK, REWARD) if "prompt" in record and names[1] in record), ())


def check_unicode(value: Any) -> None:
    """Raise DataError for JSON data with text that cannot be encoded as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError("unpaired surrogate (invalid Unicode)") from error
    except RecursionError as error:
        raise DataError("nested too deeply") from error


def check_trained(turns: Iterable[Mapping[str, Any]]) -> None:
    """Raise DataError for a turn whose weight training cannot follow."""
    for turn in turns:
        if turn.get("weight") not in (None, 0, 1):
            raise DataError(f"a turn has weight {json.dumps(turn['weight'])[:40]}. Use 0 or 1")


def asked(record: Record) -> list[Message]:
    """Return the conversation that a record, except plain text, asks to continue."""
    if "chosen" not in record and "messages" in record:
        return record["messages"][:-1]
    asks = record["prompt" if "prompt" in record else "instruction"]
    return asks if isinstance(asks, list) else question(asks, record.get("input") or "", record.get("system") or "")


def turns_of(record: Record) -> list[Message]:
    """Return the conversation of a record, except plain text, with its answer; that of a pair with the chosen one."""
    if "chosen" not in record and "messages" in record:
        return record["messages"]
    return [*asked(record), {"role": "assistant", "content": answer_of(record)}]


def answer_of(record: Record) -> str:
    """Return the answer to `asked` in a record, except plain text; without the calls of tools in it."""
    if "chosen" in record or unpaired_fields(record):
        return record["chosen" if "chosen" in record else unpaired_fields(record)[1]]
    return record["messages"][-1]["content"] if "messages" in record else record["output"]


def calls_of(record: Record) -> list[dict[str, Any]]:
    """Return the calls of tools in the answer to `asked`."""
    return (turns_of(record)[-1].get("tool_calls") or []) if "text" not in record else []


def variables_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables that a record has for the chat template: `VARIABLES` of the expected type, if not empty."""
    found = stored_variables(record)
    options = found.pop("chat_template_kwargs", {})
    return {name: value for name, value in options.items() if name not in RENDERED_ELSEWHERE} | found


def stored_variables(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `VARIABLES` that a row has, if they are of the expected type and not empty."""
    return {name: row[name] for name in VARIABLES if row.get(name) and _is_variable(name, row[name])}


def _is_variable(name: str, value: Any) -> bool:
    kind = VARIABLES[name]
    return isinstance(value, kind) and (kind is dict or all(isinstance(item, dict) for item in value))
