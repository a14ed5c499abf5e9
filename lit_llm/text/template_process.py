"""The process in which chat templates are rendered.

A template is code of strangers: Jinja's sandbox keeps it from files and from Python's internals, the limits of a process from
all memory and from endless loops.

It reads requests, a line of JSON each, and writes a line of JSON for each: `text` and `marks`, the beginnings and ends of what
`{% generation %}` encloses, if they are requested; or `error`.
"""

import contextlib
import datetime
import functools
import json
import re
import signal
import sys
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 2.0
"""CPU time of a rendering; published templates need milliseconds."""
MEMORY = 2**30
"""Bytes of address space of the process, which needs a tenth of it."""
CHARACTERS = 2**24
"""Length of a rendered conversation; no context is as long."""


BEGIN, END = "\ufdd0", "\ufdd1"  # of a mark while it is rendered: they are not characters of any text


class _Generation(Extension):
    """`{% generation %}` marks answers in a template: its content is rendered unchanged."""

    tags = {"generation"}  # noqa: RUF012
    is_marked = False

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = ([nodes.Output([nodes.TemplateData(mark)])] if self.is_marked else [] for mark in (BEGIN, END))
        return [*begin, *body, *end]


class _Marked(_Generation):
    """Renders `BEGIN` and `END` around it."""

    is_marked = True


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:  # Jinja's own escapes HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


@functools.lru_cache(maxsize=8)
def _compile(source: str, marks: bool) -> jinja2.Template:
    """Compile with the settings and helpers that templates expect of transformers (utils/chat_template_utils.py)."""
    extensions = [_Marked if marks else _Generation, loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def _answer(line: str) -> dict[str, Any]:
    try:
        request = json.loads(line)
        marks = request.get("marks", False)
        if marks and any(json.dumps(mark)[1:-1] in line for mark in (BEGIN, END)):
            return {"error": "the conversation has a character that marks answers, U+FDD0 or U+FDD1"}
        text, found = _compile(request["source"], marks).render(**request["variables"]), []
        if marks:
            text, found = _split(text)
        text.encode()  # raises for an unpaired surrogate
        if len(text) > CHARACTERS:
            return {"error": f"it renders {len(text)} characters"}
        return {"text": text, "marks": found}
    except MemoryError:
        return {"error": f"it needs more than {MEMORY // 2**20} MB of memory"}
    except Exception as error:  # whatever the template does
        return {"error": str(error) or type(error).__name__}


def _split(rendered: str) -> tuple[str, list[tuple[int, int]]]:
    """Return a text without marks, and the characters between them. The end of a mark belongs to the last that began."""
    text, begun, found = "", [], []
    for part in re.split(f"([{BEGIN}{END}])", rendered):
        if part == BEGIN:
            begun.append(len(text))
        elif part == END and begun:
            found.append((begun.pop(), len(text)))
        elif part != END:
            text += part
    return text, sorted(found)


def main() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows; a limit that is lower already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        _limit_time(SECONDS)
        answer = json.dumps(_answer(line))
        _limit_time(0)
        print(answer, flush=True)


def _limit_time(seconds: float) -> None:
    """End the process after `seconds`; 0: never. The signal has no handler: it interrupts a single long operation, too."""
    with contextlib.suppress(AttributeError):  # Windows
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()
