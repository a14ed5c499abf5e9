"""Chat templates of checkpoints, rendered by Jinja as transformers does."""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_llm.errors import OptionError
from lit_llm.text.styles import Message, for_template


@dataclass(frozen=True)
class ChatTemplate:
    """The Jinja template of a checkpoint, a `Style`. It is untrusted code, and runs in Jinja's sandbox."""

    source: str

    def render(self, messages: Sequence[Message], generation: bool, tokens: Mapping[str, str]) -> str:
        import jinja2

        joined = [for_template(message) for message in messages]
        more = {"add_generation_prompt": generation, "tools": None, "documents": None}
        try:
            template = _compile(self.source)
            return template.render({"messages": joined} | more | dict(tokens))
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, ArithmeticError, RecursionError) as error:
            roles = ", ".join(m["role"] for m in messages)
            raise OptionError(
                f"the checkpoint's chat template cannot render a conversation of {roles}: {error}. "
                "Fix the data, or use another `prompt_style`"
            ) from error


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> Any:
    """Compile with the settings and helpers that templates expect of transformers (utils/chat_template_utils.py)."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks answers in a template: its content is rendered unchanged."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:  # Jinja's own escapes HTML
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)
