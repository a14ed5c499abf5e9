"""Tools, their calls and results in the shapes that people publish (OpenAI's, ShareGPT's, Hermes'), as OpenAI's."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lit_llm.data.file_readers import parse_value
from lit_llm.errors import DataError
from lit_llm.schema import shown

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_RESULT = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
_TOOLS = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)
_TYPES = ("object", "string", "number", "integer", "boolean", "array", "null")

Turn = dict[str, Any]


def to_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return tools as `{"type": "function", "function": {"name", "description", "parameters"}}`.

    Raises:
        DataError: for a tool without a name, or with parameters that are not a JSON schema.
    """
    found = []
    for tool in tools:
        tool = dict(tool) if "function" in tool else {"type": "function", "function": tool}
        name = _name_of(tool["function"], "a tool", tool["function"])
        _check_schema(name, tool["function"].get("parameters") or {})
        found.append(tool)
    return found


def _name_of(function: Any, what: str, found: Any) -> str:
    """Return the name of a function. Raise DataError, about `what`, if it has none."""
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{what} has no function name, found {shown(found)}")
    return name


def _check_schema(name: str, schema: Any) -> None:
    """Raise DataError unless `schema` is an object that describes arguments: a JSON schema, or its properties alone."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    is_schema = isinstance(kind, str) or (isinstance(schema, dict) and "properties" in schema)
    properties = schema.get("properties", {}) if is_schema else schema
    if not isinstance(properties, dict) or not all(isinstance(value, dict | bool) for value in properties.values()):
        raise DataError(f"the parameters of the tool {shown(name)} are not a JSON schema, found {shown(schema)}")
    if isinstance(kind, str) and kind not in _TYPES:
        types = ", ".join(_TYPES)
        raise DataError(f"the parameters of the tool {shown(name)} have the type {shown(kind)}. Use one of: {types}")


def to_calls(calls: Any) -> list[dict[str, Any]]:
    """Return calls as `{"type": "function", "function": {"name", "arguments"}}`, arguments as an object, with `id` if given.

    Raises:
        DataError: for a call without a name, or with arguments that are not a JSON object.
    """
    calls = _parsed(calls, "the calls of a turn are")
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function: Any = call.get("function", call) if isinstance(call, dict) else None
        name = _name_of(function, "a call of a tool", call)
        given = function.get("arguments", function.get("parameters"))
        arguments = _parsed(given, f"the arguments of the call of {shown(name)} are") if given not in (None, "") else {}
        if not isinstance(arguments, dict):
            raise DataError(f"the arguments of the call of {shown(name)} are not a JSON object, found {shown(arguments)}")
        more = {key: value for key, value in call.items() if key not in ("function", "name", "arguments", "parameters")}
        found.append({"type": "function", **more, "function": {"name": name, "arguments": arguments}})
    return found


def _parsed(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        found = parse_value(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} not JSON: {shown(value)}") from error
    if isinstance(found, DataError):
        raise found
    return found


def with_calls(turn: Mapping[str, Any]) -> Turn:
    """Return a turn with `tool_calls` as `to_calls` returns them, also if it has `function_call`, and a result as a string."""
    turn = dict(turn)
    calls = [turn.pop(name) for name in ("tool_calls", "function_call") if name in turn]
    if calls := next(filter(None, calls), None):
        return {**turn, "content": turn.get("content") or "", "tool_calls": to_calls(calls)}
    if turn.get("role") == "tool" and not isinstance(turn.get("content"), str | None):
        turn["content"] = json.dumps(turn["content"], ensure_ascii=False)
    return turn


def from_hermes(turns: Sequence[Turn]) -> list[Turn]:
    """Return a conversation with the calls and results in place of the tags that hold them as text."""
    found: list[Turn] = []
    for turn in turns:
        text = turn["content"] if isinstance(turn["content"], str) else ""
        if turn["role"] == "assistant" and (calls := _CALL.findall(text)) and "tool_calls" not in turn:
            parsed = [_parsed(call.strip(), "a call between tags is") for call in calls]
            found.append(with_calls({**turn, "content": _CALL.sub("", text).strip(), "tool_calls": parsed}))
        elif turn["role"] == "tool" and (results := _RESULT.findall(text)):
            found += [{**turn, "content": result.strip()} for result in results]
        else:
            found.append(turn)
    return found


def tools_in_system(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Return the tools that a system turn lists between its last `<tools>` tags, as one JSON list or an object on each line."""
    text = turns[0]["content"] if turns and turns[0]["role"] == "system" else None
    inside = [found.strip() for found in _TOOLS.findall(text)] if isinstance(text, str) else []
    if not inside or not inside[-1].startswith(("[", "{")):
        return []
    lines = [inside[-1]] if inside[-1].startswith("[") else inside[-1].splitlines()
    found = [_parsed(line, "the tools of the system turn are") for line in lines if line.strip()]
    tools = found[0] if isinstance(found[0], list) else found
    return to_tools(tools) if all(isinstance(tool, dict) for tool in tools) else []
