"""Prompts from a file, and answers to JSON lines that an interrupted run leaves off and a further one continues."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_llm.text.conversation import check_messages, question
from lit_llm.text.styles import Message

Prompt = str | dict[str, Any]
"""A text, or a record of a .jsonl file."""


def read_text(path: Path) -> str:
    """Raises FileNotFoundError if there is no such file, ValueError if it is not UTF-8."""
    if not path.is_file():
        raise FileNotFoundError(f"--prompt_file {path} does not exist")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start})") from error


def read_lines(path: Path) -> list[Prompt]:
    """The prompts of a .jsonl file: JSON texts or objects. Raises ValueError, with the line, for anything else."""
    found = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}:{error.colno}: not JSON ({error.msg})") from error
        if not isinstance(prompt, (str, dict)):
            raise ValueError(f"{path}:{number}: a prompt is a text or an object, found {type(prompt).__name__}")
        found.append(prompt)
    if not found:
        raise ValueError(f"{path} has no prompts")
    return found


def as_text(prompt: Prompt) -> str:
    """What a model is to continue: the text, or that of `prompt` or `text` in a record. Raises ValueError if there is none."""
    if isinstance(prompt, str):
        return prompt
    text = prompt.get("prompt", prompt.get("text"))
    if not isinstance(text, str):
        raise ValueError("the record has no text as its 'prompt' or 'text'")
    return text


def as_messages(prompt: Prompt, input: str = "") -> list[Message]:
    """The conversation that a model is to answer: of an instruction, or of `messages`, without the answer at their end.

    Raises:
        ValueError: if a record has none of `messages`, `instruction` and `prompt`.
    """
    if isinstance(prompt, str):
        return question(prompt, input)
    if "messages" in prompt:
        turns = prompt["messages"]
        answered = isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant"
        turns = turns[:-1] if answered else turns
        check_messages([*turns, {"role": "assistant", "content": "-"}] if isinstance(turns, list) else turns)
        return turns
    parts = [prompt.get("instruction", prompt.get("prompt")), prompt.get("input") or "", prompt.get("system") or ""]
    if not all(isinstance(part, str) for part in parts):
        raise ValueError("the record has no 'messages' and no text as its 'instruction' or 'prompt'")
    return question(*parts)


OPENING = b'{"row": 0, "sample": 0, "prompt": '  # of the first line, which a run may not have finished


class AnswerFile:
    """JSON lines, of which each bears the key of what was asked.

    Attributes:
        n_done: Lines that an earlier run wrote. They are kept; a line that it did not finish is removed.

    Args:
        keys: Of all lines, in their order.

    Raises:
        ValueError: if the file holds anything else than the first of these lines and the beginning of one more.
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
            raise ValueError(
                f"{path} holds answers to other prompts, or of another model or other options. Give another --output_file"
            )
        self._file.truncate(len(whole) + 1 if whole else 0)
        self.n_done = len(lines)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _key(line: bytes) -> str | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value.get("key") if isinstance(value, dict) else None
