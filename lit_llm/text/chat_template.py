"""Chat templates of checkpoints, rendered by Jinja as transformers does, in a process with limits."""

import atexit
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lit_llm.errors import OptionError
from lit_llm.text.rendered_calls import arguments_of, shows_python, with_arguments_as_strings
from lit_llm.text.styles import Message, for_template
from lit_llm.text.thoughts import CLOSED, FIELDS, Form, has_thought, in_form

RECORD_LISTS = ("tools", "functions", "documents")
"""Variables that a record has next to its turns."""


@dataclass(frozen=True)
class ChatTemplate:
    """The Jinja template of a checkpoint, a `Style`."""

    source: str
    kwargs: str = "{}"
    """Variables of all renderings, as a JSON object; those of a record or a request are preferred."""

    def render(self, messages: Sequence[Message], generation: bool, tokens: Mapping[str, str]) -> str:
        """Return the conversation. Arguments of calls are objects, or strings if the template cannot render objects."""
        return self._render(messages, generation, tokens)["text"]

    def marked(self, messages: Sequence[Message], tokens: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]] | None:
        """Return the conversation and the parts that `{% generation %}` encloses; None if the template has no such marks.

        A part is its first character and the one after its last.
        """
        if not re.search(r"\{%-?\s*generation\b", self.source):
            return None
        rendered = self._render(messages, False, tokens, marks=True)
        return rendered["text"], [(begin, end) for begin, end in rendered["marks"]]

    def _render(
        self, messages: Sequence[Message], generation: bool, tokens: Mapping[str, Any], marks: bool = False
    ) -> dict[str, Any]:
        joined, arguments = [for_template(message) for message in messages], arguments_of(messages)
        if any(map(has_thought, messages)):
            form = self.thoughts(tokens)
            joined = [in_form(message, form) for message in joined]
        answer = self._answer(joined, generation, tokens, marks)
        if arguments and ("error" in answer or shows_python(answer["text"], arguments)):
            other = self._answer([with_arguments_as_strings(message) for message in joined], generation, tokens, marks)
            answer = answer if "error" in other else other
        if "error" in answer:
            roles = ", ".join(m["role"] for m in messages[:20])
            raise OptionError(
                f"the checkpoint's chat template cannot render a conversation of {roles}: {answer['error']}. "
                "Fix the data, or use another `prompt_style`"
            )
        return answer

    def thoughts(self, tokens: Mapping[str, Any]) -> Form:
        """Return how the template renders thoughts; `tokens` as for `render`."""
        return _form(self, json.dumps({name: value for name, value in tokens.items() if name not in RECORD_LISTS}))

    def _answer(
        self, messages: list[dict[str, Any]], generation: bool, tokens: Mapping[str, Any], marks: bool = False
    ) -> dict[str, Any]:
        variables = {"messages": messages, "add_generation_prompt": generation, "tools": None, "documents": None}
        variables |= {**json.loads(self.kwargs), **tokens}
        return _PROCESS.answer({"source": self.source, "variables": variables, "marks": marks})


@lru_cache(maxsize=64)
def _form(template: ChatTemplate, tokens: str) -> Form:
    """Return the form of thoughts. Each field is tried with the special tokens only, and then with all variables."""
    everything = json.loads(tokens)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\u2603"}]
    tagged = turns[1] | {"content": "<think>\n\u2602\n</think>\n\n\u2603"}
    plain = ChatTemplate(template.source)
    special = {name: value for name, value in everything.items() if name.endswith("_token")}
    for which, variables in ((plain, special), (template, everything)):
        for field in FIELDS:
            text = which._answer([turns[0], turns[1] | {field: "\u2602"}], False, variables).get("text", "")
            before, thought, after = text.partition("\u2602")
            closing, content, _ = after.partition("\u2603")
            if thought and content:
                asked = which._answer(turns[:1], True, variables).get("text", "")
                return Form(field, opening=before.removeprefix(asked), closing=closing)
    asked = template._answer(turns[:1], True, everything).get("text", "")
    answered = template._answer([turns[0], tagged], False, everything).get("text", "\u2602")
    return Form(omits_tags="\u2602" not in answered or bool(CLOSED.search(asked)))


class _Process:
    """The process that renders. It starts with the first template, and again after a template has exceeded its limits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return `text` and `marks`, or `error`."""
        line = json.dumps(request) + "\n"
        with self._lock:
            if self._process is None or self._owner != os.getpid():  # a fork has pipes of its own
                self._process, self._owner = _start(), os.getpid()
            process = self._process
            assert process.stdin is not None and process.stdout is not None
            answer = ""
            try:
                process.stdin.write(line)
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                pass  # as if it had written no answer
            finally:
                if not answer:  # it has ended, or an interrupted caller must not leave its answer to the next one
                    self.stop()
        if answer:
            return json.loads(answer)
        slow = process.returncode == -getattr(signal, "SIGPROF", 0)
        return {"error": "it takes too long" if slow else f"its process ended with code {process.returncode}"}

    def stop(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        self._process = None


def _start() -> "subprocess.Popen[str]":
    # A session of its own: Ctrl-C is for this process. The child exits when the pipe to it is closed.
    return subprocess.Popen(
        [sys.executable, "-m", "lit_llm.text.template_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        text=True,
        encoding="ascii",
        start_new_session=True,
    )


_PROCESS = _Process()
atexit.register(_PROCESS.stop)
