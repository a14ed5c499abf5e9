# ruff: noqa: E501  -- templates
"""Chat templates with thoughts. Each behaves as those of a family do, in short, and in words of its own."""

from typing import Any


def _template(source: str) -> str:
    """Lines and their indentation are for the reader; ⏎ is a line break."""
    return "".join(line.strip() for line in source.splitlines()).replace("⏎", "{{ '\n' }}")


_LAST_QUESTION = r"""
{% set ns = namespace(last=-1) %}
{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
"""
_SPLIT = r"""
{% set thought = m.reasoning_content or '' %}{% set said = m.content %}
{% if '</think>' in said %}
    {% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}{% set said = said.split('</think>')[-1].lstrip('\n') %}
{% endif %}
"""
_CALLS = r"""
{% for c in m.tool_calls or [] %}⏎<tool_call>⏎{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}⏎
</tool_call>{% endfor %}
"""
_TOOLS = "{% for t in tools or [] %}<tools>{{ t | tojson }}</tools>{% endfor %}"

THOUGHT_TEMPLATES: dict[str, str] = {
    # Qwen3: thoughts since the last question are rendered, and the last turn has one, if it is empty.
    "qwen3": _LAST_QUESTION + _TOOLS + "{% for m in messages %}{% if m.role == 'assistant' %}" + _SPLIT + r"""
        <|im_start|>assistant⏎
        {% if loop.index0 > ns.last and (loop.last or thought) %}<think>⏎{{ thought.strip('\n') }}⏎</think>⏎⏎{% endif %}{{ said }}
        """ + _CALLS + r"""<|im_end|>⏎
        {% else %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}⏎
        {% if m.role == 'tool' %}<tool_response>⏎{{ m.content }}⏎</tool_response>{% else %}{{ m.content }}{% endif %}<|im_end|>⏎
        {% endif %}{% endfor %}
        {% if add_generation_prompt %}<|im_start|>assistant⏎
        {% if enable_thinking is defined and enable_thinking is false %}<think>⏎⏎</think>⏎⏎{% endif %}{% endif %}""",
    # DeepSeek R1: no turn has its thought, and the prompt opens one.
    "deepseek-r1": "{{ bos_token }}" + _TOOLS + r"""{% for m in messages %}
        {% if m.role == 'assistant' %}<|Assistant|>{{ m.content.split('</think>')[-1].lstrip('\n') }}""" + _CALLS + r"""{{ eos_token }}
        {% elif m.role == 'tool' %}<|output|>{{ m.content }}
        {% elif m.role == 'user' %}<|User|>{{ m.content }}
        {% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>⏎{% endif %}""",
    # DeepSeek V3.1: a prompt with or without a thought, by the variable thinking.
    "deepseek-v3.1": "{{ bos_token }}" + _TOOLS + r"""{% for m in messages %}
        {% if m.role == 'assistant' %}<|Assistant|></think>{{ m.content.split('</think>')[-1].lstrip('\n') }}""" + _CALLS + r"""
        {{ eos_token }}
        {% elif m.role == 'tool' %}<|output|>{{ m.content }}
        {% elif m.role == 'user' %}<|User|>{{ m.content }}
        {% else %}{{ m.content }}{% endif %}{% endfor %}
        {% if add_generation_prompt %}<|Assistant|>{{ '<think>' if thinking else '</think>' }}{% endif %}""",
    # GLM-4.5: nothing closes a turn, and earlier thoughts are empty.
    "glm4.5": "[gMASK]<sop>" + _LAST_QUESTION + _TOOLS + "{% for m in messages %}{% if m.role == 'assistant' %}" + _SPLIT + r"""
        <|assistant|>⏎{% if loop.index0 > ns.last and thought %}<think>{{ thought.strip() }}</think>{% else %}<think></think>{% endif %}
        {% if said.strip() %}⏎{{ said.strip() }}{% endif %}""" + _CALLS + r"""
        {% elif m.role == 'tool' %}<|observation|>⏎<tool_response>⏎{{ m.content }}⏎</tool_response>
        {% else %}<|{{ m.role }}|>⏎{{ m.content }}
        {{ '/nothink' if m.role == 'user' and enable_thinking is defined and not enable_thinking }}
        {% endif %}{% endfor %}
        {% if add_generation_prompt %}<|assistant|>
        {% if enable_thinking is defined and not enable_thinking %}⏎<think></think>{% endif %}{% endif %}""",
    # gpt-oss: a channel for thoughts. Only the last turn has one, unless a call follows it.
    "gpt-oss": _LAST_QUESTION + "{% for t in tools or [] %}type {{ t.function.name }} = (_: {{ t | tojson }}) => any;{% endfor %}" + r"""
        {% for m in messages %}{% if m.role == 'assistant' %}
            {% if m.thinking and (loop.index0 > ns.last) %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}
            {% if m.tool_calls %}
                {% if m.content %}{{ raise_exception('words next to a call') }}{% endif %}
                {% for c in m.tool_calls %}<|start|>assistant to=functions.{{ c.function.name }}<|channel|>commentary json<|message|>
                {{ c.function.arguments | tojson }}<|call|>{% endfor %}
            {% else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}
                {{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}
        {% elif m.role == 'tool' %}<|start|>functions to=assistant<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>
        {% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}
        {% if add_generation_prompt %}<|start|>assistant{% endif %}""",
    # SmolLM3: the content as it is, between marks, which include the header; without thoughts, an empty one before it.
    "smollm3": "{% set thinks = enable_thinking is not defined or enable_thinking %}" + _TOOLS + r"""
        <|im_start|>system⏎{{ '/think' if thinks else '/no_think' }}
        {% if messages[0].role == 'system' %} {{ messages[0].content }}{% endif %}<|im_end|>⏎
        {% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|im_start|>assistant⏎
        {% if not thinks %}<think>⏎⏎</think>⏎{% endif %}{{ m.content.lstrip('\n') }}""" + _CALLS + r"""<|im_end|>⏎{% endgeneration %}
        {% elif m.role == 'tool' %}<|im_start|>user⏎{{ m.content }}<|im_end|>⏎
        {% elif m.role == 'user' %}<|im_start|>user⏎{{ m.content }}<|im_end|>⏎{% endif %}{% endfor %}
        {% if add_generation_prompt %}<|im_start|>assistant⏎{% if not thinks %}<think>⏎⏎</think>⏎{% endif %}{% endif %}""",
}  # fmt: skip
THOUGHT_TEMPLATES = {name: _template(source) for name, source in THOUGHT_TEMPLATES.items()}

_FIRST, _SECOND = {"role": "user", "content": "What is 2 + 2?"}, {"role": "user", "content": "And twice that?"}


def _answer(content: str, thought: str = "") -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({"reasoning_content": thought} if thought else {})}


THOUGHT_CHATS: dict[str, list[dict[str, Any]]] = {
    "thought": [_FIRST, _answer("It is 4.", "Two and two:\n\nfour.")],
    "no thought": [_FIRST, _answer("It is 4.")],
    "two thoughts": [_FIRST, _answer("It is 4.", "four"), _SECOND, _answer("It is 8.", "Twice 4.")],
    "one of two": [{"role": "system", "content": "Be short."}, _FIRST, _answer("4"), _SECOND, _answer("It is 8.", "Twice 4.")],
    "no thoughts": [_FIRST, _answer("It is 4."), _SECOND, _answer("It is 8.")],
}
