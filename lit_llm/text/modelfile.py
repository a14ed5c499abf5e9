"""Modelfiles of Ollama: the prompt style and the ends of answers next to a GGUF file
(https://github.com/ollama/ollama/blob/main/docs/modelfile.md)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lit_llm.errors import OptionError
from lit_llm.text.conversation import prompt_style
from lit_llm.text.ending import Ending
from lit_llm.text.styles import Message, Style
from lit_llm.text.tokenizer import Tokenizer

_SYSTEM, _USER, _ANSWER = "lit0system", "lit0user", "lit0answer"


class Pieces(NamedTuple):
    """The texts of a style around the contents of a conversation.

    A conversation is `plain`, or `system[0]`, the system message and `system[1]`; then the user's turn and `asked`; then for
    each further turn `lead`, the answer, `answered`, the user's turn and `asked`.
    """

    plain: str
    system: tuple[str, str] | None
    """None: the style has no place for a system message."""
    asked: str
    lead: str
    """Text that the model writes first, such as a space."""
    answered: str


def pieces_of(style: Style, tokens: Mapping[str, Any]) -> Pieces:
    """Return the pieces of a style. Raise OptionError if it changes the contents of turns, so that there are none."""

    def render(*messages: Message) -> str:
        return style.render(messages, True, tokens)

    def split(text: str, *contents: str) -> list[str]:
        pieces = []
        for content in contents:
            piece, found, text = text.partition(content)
            if not found:
                raise OptionError("the prompt style changes or omits the contents of turns")
            pieces.append(piece)
        return [*pieces, text]

    user: Message = {"role": "user", "content": _USER}
    plain, asked = split(render(user), _USER)
    further = render(user, {"role": "assistant", "content": _ANSWER}, user)
    _, before, answered, _ = split(further, _USER, _ANSWER, _USER)
    lead = before.removeprefix(asked)
    try:
        above, below, _ = split(render({"role": "system", "content": _SYSTEM}, user), _SYSTEM, _USER)
        system = above, below
    except OptionError:  # the template refuses a system message, or drops it
        system = None
    return Pieces(plain, system, asked, lead, answered)


def modelfile(source: str, style: str, tokenizer: Tokenizer, end: Ending, adapter: str | None = None) -> str:
    """Return a Modelfile.

    Args:
        source: File or name of the model.
        style: Name of the prompt style.
        end: The tokens and strings that end an answer.
        adapter: File of a LoRA over the model.
    """
    lines = [f"FROM {source}", *([f"ADAPTER {adapter}"] if adapter else [])]
    pieces = pieces_of(prompt_style(style, tokenizer), tokenizer.special_tokens)
    bos = tokenizer.special_tokens.get("bos_token", "") if tokenizer.adds_bos else ""
    lines.append(f'TEMPLATE """{_go_template(pieces, bos)}"""')
    stops = [*(tokenizer.token_string(i) for i in sorted(end.ids)), *end.strings]
    lines += ["PARAMETER stop " + _quoted(stop) for stop in stops if stop]
    return "\n".join(lines) + "\n"


def _go_template(pieces: Pieces, bos: str) -> str:
    """Return a template of Go. A BOS that llama.cpp adds is not part of it."""
    opening = _literal(pieces.plain.removeprefix(bos))
    if pieces.system is not None:
        before, after = pieces.system
        system = _literal(before.removeprefix(bos)) + "{{ $.System }}" + _literal(after)
        opening = "{{ if $.System }}" + system + "{{ else }}" + opening + "{{ end }}"
    first = "{{ if $first }}" + opening + "{{ $first = false }}{{ end }}"
    turn = '{{ if eq .Role "user" }}' + first + "{{ .Content }}" + _literal(pieces.asked)
    turn += (
        '{{ else if eq .Role "assistant" }}'
        + _literal(pieces.lead)
        + "{{ .Content }}"
        + _literal(pieces.answered)
        + "{{ end }}"
    )
    return "{{- $first := true }}{{- range .Messages }}" + turn + "{{ end }}"


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
