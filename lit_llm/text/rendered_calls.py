"""Calls of tools in the form that a chat template expects, and what of them it renders."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def arguments_of(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the arguments of all calls."""
    calls = (call for message in messages for call in message.get("tool_calls") or ())
    return [call["function"]["arguments"] for call in calls]


def with_arguments_as_strings(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose calls have their arguments as JSON in a string, as OpenAI's API has them."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)}}
        for call in message.get("tool_calls") or ()
    ]
    return {**message, **({"tool_calls": calls} if calls else {})}


def shows_python(text: str, arguments: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if a rendered text has arguments as Python shows a dictionary: its template expects strings."""
    return any(repr(each) in text for each in arguments if repr(each) != json.dumps(each, ensure_ascii=False))


def lost_call(message: Mapping[str, Any], text: str) -> str | None:
    """Return the name of a call that a rendered answer does not have with all of its values, if there is one."""
    for call in message.get("tool_calls") or ():
        function = call["function"]
        if not all(_is_in(value, text) for value in (function["name"], *_leaves(function["arguments"]))):
            return function["name"]
    return None


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict):
                yield key
            yield from _leaves(item)
    else:
        yield value


def _is_in(value: Any, text: str) -> bool:
    """Return True if a text has a number, string or constant: as it is, or in JSON, with or without ASCII alone."""
    return str(value) in text or any(json.dumps(value, ensure_ascii=ascii).strip('"') in text for ascii in (True, False))
