"""The order of turns in a conversation, with calls of tools and their results."""

from collections.abc import Mapping, Sequence
from typing import Any

from lit_llm.errors import DataError
from lit_llm.schema import shown
from lit_llm.text.styles import split_system
from lit_llm.text.thoughts import has_thought, split_thought

ROLES = ("system", "user", "assistant", "tool")


def check_messages(messages: Any) -> None:
    """Raise DataError unless `messages` is an optional system message and then turns from user to assistant.

    An assistant that calls tools (`tool_calls`) is followed by their results, of the role tool, and by the assistant again, or
    ends the conversation.
    """
    if not isinstance(messages, list) or not messages:
        raise DataError("'messages' must be a list of turns")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError("a turn must have a 'role' and a 'content'")
        if not isinstance(message.get("content"), str):
            raise DataError("the 'content' of a turn must be a string")
        if message["role"] not in ROLES:
            raise DataError(f"the role {shown(message['role'])} is not {', '.join(ROLES[:-1])} or {ROLES[-1]}")
        if has_thought(message):
            split_thought(message)  # raises for two thoughts
        _check_calls(message.get("tool_calls"))
        may_be_empty = message["role"] in ("system", "tool") or message.get("tool_calls")
        if not may_be_empty and not message["content"].strip():
            raise DataError(f"a turn of the {message['role']} is empty")
    turns = split_system(messages)[1]
    calls: Sequence[Mapping[str, Any]] = ()
    results: list[Mapping[str, Any]] = []
    before = "assistant"
    for turn in turns:
        role = turn["role"]
        if role == "tool":
            if not calls:
                raise DataError("a result of a tool has no call before it")
            results.append(turn)
        elif calls:
            _check_results(calls, results)
        if (role in ("user", "assistant") and (role == "assistant") != (before in ("user", "tool"))) or role == "system":
            raise DataError("a role is out of order: user and assistant must take turns, the user first")
        if role == "assistant":
            calls, results = turn.get("tool_calls") or (), []
        before = role
    if before != "assistant" or not turns:
        raise DataError("the last turn is not the assistant's")


def _check_calls(calls: Any) -> None:
    """Raise DataError unless calls are `{"function": {"name": a string, "arguments": an object}}`."""
    for call in calls if isinstance(calls, list) else [calls] if calls else []:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"a call of a tool has no function name, found {shown(call)}")
        if not isinstance(function.get("arguments"), dict):
            raise DataError(f"the arguments of the call of {shown(function['name'])} are not a JSON object")


def _check_results(calls: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]) -> None:
    """Raise DataError unless each call has a result: by id, or else by number. One result may be that of all calls."""
    asked, given = [call.get("id") for call in calls], [result.get("tool_call_id") for result in results]
    if not results or None in asked or None in given:
        if len(results) not in (1, len(calls)):
            names = shown([call["function"]["name"] for call in calls])
            raise DataError(f"the calls of tools are {len(calls)}, {names}, their results {len(results)}")
    elif missing := [i for i in asked if i not in given]:
        raise DataError(f"the call {shown(missing[0])} has no result; results are those of {', '.join(map(shown, given))}")
    elif unknown := [i for i in given if i not in asked]:
        raise DataError(f"the result of {shown(unknown[0])} has no call; calls are {', '.join(map(shown, asked))}")
