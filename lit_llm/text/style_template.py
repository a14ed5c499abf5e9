"""Prompt styles as Jinja chat templates, for programs that know no other form."""

import json
from string import Formatter

from lit_llm.text.styles import Turns

_SYSTEM = (
    "{%%- if messages[0]['role'] == 'system' -%%}{%%- set system = %s if messages[0]['content'] else '' -%%}"
    "{%%- set turns = messages[1:] -%%}{%%- else -%%}{%%- set system = %s -%%}{%%- set turns = messages -%%}{%%- endif -%%}"
)
_TURNS = (
    "{%%- for message in turns -%%}{%%- if message['role'] == 'assistant' -%%}{{- %s -}}{%%- else -%%}"
    "{{- (%s if not loop.first else '') + %s -}}{%%- endif -%%}{%%- endfor -%%}"
)


def jinja_template(style: Turns, bos: str, eos: str) -> str:
    """Return the template that renders conversations as the style does, for messages without further input."""
    slots = {"bos": json.dumps(bos), "eos": json.dumps(eos)}
    default = _expression(style.system, slots | {"": json.dumps(style.default_system)}) if style.default_system else "''"
    system = _SYSTEM % (_expression(style.system, slots | {"": "messages[0]['content']"}), default)
    asked = _expression(style.user, slots | {"system": "(system if loop.first else '')", "user": "message['content']"})
    answered = _expression(style.answer, slots | {"answer": "message['content']"})
    turns = _TURNS % (answered, _expression(style.between, slots), asked)
    return ("{{- " + _expression(style.first, slots) + " -}}" if style.first else "") + system + turns


def _expression(form: str, slots: dict[str, str]) -> str:
    """Return a Jinja expression: the literals of `form`, joined with the expressions for its slots."""
    parts = []
    for literal, slot, _, _ in Formatter().parse(form):
        parts += [json.dumps(literal)] if literal else []
        parts += [slots[slot]] if slot is not None else []
    return " + ".join(parts) or "''"
