"""Thoughts of answers: in a field of the turn, or between `<think>` tags at the beginning of its content."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lit_llm.errors import DataError

FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names of the field, as servers and chat templates have them."""

OPENED = re.compile(r"<think>\s*$")
"""The end of a prompt that opens the thought of the answer."""
CLOSED = re.compile(r"</think>\s*$")
"""The end of a prompt that asks for an answer without a thought."""
EMPTY = re.compile(r"\s*(?:<think>)?\s*</think>\s*")
"""A thought without content, possibly opened in the prompt."""


class Form(NamedTuple):
    """How a prompt style renders thoughts."""

    field: str | None = None
    """The field that it reads; None: it renders the content only, so a thought is a part of it."""
    omits_tags: bool = False
    """It reads no field, and omits a thought between tags from the content, or asks for answers without one."""
    opening: str = "<think>\n"
    """The string between a prompt and a thought."""
    closing: str = "\n</think>\n\n"
    """The string between a thought and the content."""


def has_thought(message: Mapping[str, Any]) -> bool:
    """Return True for an answer with a thought, which may be empty."""
    content = message["content"]
    if message["role"] != "assistant" or not isinstance(content, str):
        return False
    return "</think>" in content or any(message.get(name) for name in FIELDS)


def split_thought(message: Mapping[str, Any]) -> tuple[str, str]:
    """Return the thought of an answer, or an empty string, and the content after it.

    The content may lack the opening tag if the closing one begins a line: a model writes an answer so if the prompt opens the
    thought. A field and tags with the same thought are one thought.

    Raises:
        DataError: if the thought is not a string, or if there are two.
    """
    given = [message[name] for name in FIELDS if message.get(name)]
    if wrong := next((name for name in FIELDS if not isinstance(message.get(name) or "", str)), None):
        raise DataError(f"the {wrong!r} of a turn must be a string")
    content = message["content"]
    before, closed, after = content.partition("</think>")
    space, opened, inside = before.partition("<think>")
    is_block = closed and (not space.strip() if opened else not given and (not before or before.endswith("\n")))
    if is_block:
        given.append(inside if opened else before)
        content = after.lstrip("\n")
    if len({thought.strip() for thought in given}) > 1:
        raise DataError("a turn has two different thoughts. Keep one of them")
    return (given[0].strip("\n") if given else ""), content


def without_thought(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer with its content only."""
    return {**{name: value for name, value in message.items() if name not in FIELDS}, "content": split_thought(message)[1]}


def in_form(message: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """Return a message with its thought, if any, in the field or the content that a style renders, or else without it."""
    if not has_thought(message):
        return dict(message)
    thought, _ = split_thought(message)
    if form.field is not None:
        return without_thought(message) | ({form.field: thought} if thought else {})
    if not any(message.get(name) for name in FIELDS):
        return dict(message)  # tags as they are written
    bare = without_thought(message)
    return bare if form.omits_tags else {**bare, "content": f"<think>\n{thought}\n</think>\n\n{bare['content']}"}


def composed(asked: str, thought: str, plain: str) -> str | None:
    """Return a conversation with the thought of its last answer, for a template that omits it there.

    Args:
        asked: The prompt of the answer, which may open the thought.
        plain: The conversation with the answer without its thought.
    """
    opened = OPENED.search(asked)
    start = asked[: opened.start()] if opened else asked
    if not plain.startswith(start):
        return None
    opening = opened[0] if opened else "<think>\n"
    rest, closing = plain[len(start) :], "\n</think>\n\n"
    if empty := EMPTY.match(rest):  # the template renders an empty thought in its place
        rest = rest[empty.end() :]
        closing = ("\n" if opening.endswith("\n") else "") + "</think>" + empty[0].rpartition("</think>")[2]
    return start + opening + thought + closing + rest


def length_of_thought(answer: str, thought: str, form: Form) -> int | None:
    """Return the number of characters that a rendered answer begins with its thought, or None if it does not have it.

    They include the tags, or whatever the style renders between thought and content, and white space before the content.
    """
    if not thought.strip():
        empty = EMPTY.match(answer)
        return empty.end() if empty else 0
    start = answer.find(thought.strip(), n_common(answer, form.opening))
    if start < 0:
        return None
    end = start + len(thought.strip())
    closing = re.match(r"\s*</think>\s*", answer[end:])
    return end + (closing.end() if closing else n_common(answer[end:], form.closing))


def n_common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Return the length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
