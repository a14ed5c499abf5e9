"""Templates of strangers: bounded in time and memory. That they render as transformers does is in test_conversation.py."""

import os
import signal
import threading

import pytest

from lit_llm.errors import OptionError
from lit_llm.text.chat_template import _PROCESS, ChatTemplate
from lit_llm.text.template_process import CHARACTERS

CHAT = [{"role": "user", "content": "hi"}]
DOUBLED = "{% set ns = namespace(x='xy') %}{% for i in range(COUNT) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
HOSTILE = {
    "repeat": ("{{ 'x' * 10**10 }}", "memory"),
    "repeat_list": ("{{ ([0] * 10**10) | length }}", "memory"),
    "center": ("{{ 'x' | center(10**11) }}", "memory"),
    "ljust": ("{{ 'x'.ljust(10**11) }}", "memory"),
    "width": ("{{ '%0*d' % (10**10, 1) }}", "memory|too big"),
    "indent": ("{{ messages | tojson(indent=10**10) }}", "memory"),
    "doubled": (DOUBLED.replace("COUNT", "60"), "memory"),
    "long": (DOUBLED.replace("COUNT", "24"), "characters"),
    "loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "too long"),
    "power": ("{{ (7 ** (7 ** 9)) % 2 }}", "too long"),
    "recursion": ("{% macro f(n) %}{{ f(n - 1) if n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(40) }}", "too long"),
    "depth": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion depth"),
    "range": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    "encoding": ("{{ 'x'.encode('no-such') }}", "unknown encoding"),
    "surrogate": ("{{ '\\ud800' }}", "surrogates not allowed"),
    "attribute": ("{{ ''.__class__.__mro__ }}", "undefined|unsafe"),
    "include": ("{% include '/etc/passwd' %}", "no loader"),
    "syntax": ("{{", "unexpected"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_refused_in_words(name):
    source, words = HOSTILE[name]
    with pytest.raises(OptionError, match=f"cannot render a conversation of user: .*({words}).*another `prompt_style`"):
        ChatTemplate(source).render(CHAT, True, {})
    assert ChatTemplate("{{ messages[0].content }}!").render(CHAT, True, {}) == "hi!"  # the next one is rendered as ever


def test_long_conversations_are_rendered_whole():
    content = "\u2603" * (CHARACTERS - 10)
    assert ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": content}], True, {}) == content


def test_threads_get_the_answers_to_their_own_questions():
    template, wrong = ChatTemplate("{{ messages[0].content }}"), []

    def render(name: int) -> None:
        for i in range(200):
            content = f"{name}-{i}"
            if template.render([{"role": "user", "content": content}], True, {}) != content:
                wrong.append(content)

    threads = [threading.Thread(target=render, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_killed_process_is_named_and_started_again():
    template = ChatTemplate("{{ messages[0].content }}")
    template.render(CHAT, True, {})
    assert _PROCESS._process is not None
    os.kill(_PROCESS._process.pid, signal.SIGKILL)
    with pytest.raises(OptionError, match="its process ended with code -9"):
        template.render(CHAT, True, {})
    assert template.render(CHAT, True, {}) == "hi"


def test_a_fork_renders_in_a_process_of_its_own():
    template = ChatTemplate("{{ messages[0].content }}")
    template.render(CHAT, True, {})
    child = os.fork()
    if child == 0:
        os._exit(0 if all(template.render(CHAT, True, {}) == "hi" for _ in range(100)) else 1)
    same = all(template.render([{"role": "user", "content": "parent"}], True, {}) == "parent" for _ in range(100))
    assert same and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
