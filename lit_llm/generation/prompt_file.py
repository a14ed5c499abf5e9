"""Prompts from a file, and answers to a file of JSON lines, which a later run continues if one is interrupted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_llm.data.tool_calls import with_calls
from lit_llm.errors import DataError, OptionError
from lit_llm.files import json_text, parse_json, read_text
from lit_llm.schema import conform
from lit_llm.text.conversation import question
from lit_llm.text.styles import Message
from lit_llm.text.turns import check_messages

Prompt = str | dict[str, Any]
"""A string, or a record of a .jsonl file."""

_ADVICE = "Write each prompt as a JSON string or object on a line of its own"


def read_prompts(path: Path) -> str:
    """Read a file. Raises FileNotFoundError if it does not exist, DataError if it is not UTF-8."""
    if not path.is_file():
        raise FileNotFoundError(f"`prompt_file` {path} does not exist")
    return read_text(path, DataError)


def read_lines(path: Path) -> list[Prompt]:
    """Read the prompts of a .jsonl file: JSON strings or objects. Raises DataError, with the line, for anything else."""
    found = []
    for number, line in enumerate(read_prompts(path).split("\n"), 1):
        if line.strip():
            prompt = parse_json(line.encode(), f"{path}:{number}", _ADVICE, DataError)
            found.append(conform(prompt, str | dict[str, Any], f"{path}:{number}", _ADVICE, DataError))
    if not found:
        raise DataError(f"{path} has no prompts")
    return found


def as_text(prompt: Prompt) -> str:
    """Return the text to continue: the string, or `prompt` or `text` of a record. Raises DataError if it has neither."""
    if isinstance(prompt, str):
        return prompt
    text = prompt.get("prompt", prompt.get("text"))
    if not isinstance(text, str):
        raise DataError("the record has no string as its 'prompt' or 'text'")
    return text


def as_messages(prompt: Prompt, input: str = "") -> list[Message]:
    """Return the conversation to answer: of an instruction, or of `messages` without an answer at their end.

    Raises:
        DataError: if a record has none of `messages`, `instruction` and `prompt`.
    """
    if isinstance(prompt, str):
        return question(prompt, input)
    if "messages" in prompt:
        turns = prompt["messages"]
        answered = isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant"
        turns = turns[:-1] if answered else turns
        if isinstance(turns, list):
            turns: Any = [with_calls(turn) if isinstance(turn, dict) else turn for turn in turns]
        check_messages([*turns, {"role": "assistant", "content": "-"}] if isinstance(turns, list) else turns)
        return turns
    parts = [prompt.get("instruction", prompt.get("prompt")), prompt.get("input") or "", prompt.get("system") or ""]
    if not all(isinstance(part, str) for part in parts):
        raise DataError("the record has no 'messages' and no string as its 'instruction' or 'prompt'")
    return question(*parts)


OPENING = b'{"row": 0, "sample": 0, "prompt": '  # of the first line, possibly unfinished


class AnswerFile:
    """A file of JSON lines, each with a `key` that identifies its question.

    Attributes:
        n_done: Number of lines in the file. Those of an earlier run are kept; an unfinished line is removed.

    Args:
        keys: Keys of all lines, in order.

    Raises:
        OptionError: if the file holds anything else than the first of these lines and the beginning of one more.
    """

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._file.seek(0)
        whole, _, begun = self._file.read().rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        ours = bool(lines) or begun[: len(OPENING)] == OPENING[: len(begun)]
        if not ours or [_key(line) for line in lines] != list(keys[: len(lines)]):
            self._file.close()
            raise OptionError(
                f"{path} holds answers to other prompts, or of another model or other options. Use another `output_file`"
            )
        self._file.truncate(len(whole) + 1 if whole else 0)
        self._keys, self.n_done = keys, len(lines)

    def write(self, line: dict[str, Any]) -> None:
        line = {**line, "key": self._keys[self.n_done]}
        self._file.write(json_text(line).encode() + b"\n")
        self._file.flush()
        self.n_done += 1

    def close(self) -> None:
        self._file.close()


def _key(line: bytes) -> str | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value.get("key") if isinstance(value, dict) else None
