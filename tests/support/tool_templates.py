# ruff: noqa: E501  -- templates in one string per part
"""Chat templates with tools. Each behaves as those of a family do, in short, and in words of its own."""

from typing import Any

_ASK = "{% if add_generation_prompt %}"

TOOL_TEMPLATES: dict[str, str] = {
    # Qwen 2.5, Hermes: tools as JSON in the system turn, calls as JSON between tags, results within a turn of the user.
    "qwen2.5": "<|im_start|>system\n{{ messages[0].content if messages[0].role == 'system' else 'Help.' }}{% if tools %}\n<tools>"
    "{% for t in tools %}\n{{ t | tojson }}{% endfor %}\n</tools>{% endif %}<|im_end|>\n"
    "{% for m in messages %}{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% elif m.role == 'assistant' %}<|im_start|>assistant{% if m.content %}\n{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls %}{% if c.function %}{% set c = c.function %}{% endif %}\n<tool_call>\n"
    '{"name": "{{ c.name }}", "arguments": {{ c.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n'
    "{% elif m.role == 'tool' %}{% if loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}\n<tool_response>\n{{ m.content }}"
    "\n</tool_response>{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n{% endif %}{% endif %}{% endfor %}"
    f"{_ASK}<|im_start|>assistant\n{{% endif %}}",
    # Llama 3.1: one call in a turn, and the result of a role of its own.
    "llama3.1": "{{ bos_token }}{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}{% set f = m.tool_calls[0].function %}"
    '<|h|>assistant<|/h|>\n\n{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}<|eot_id|>'
    "{% elif m.role == 'tool' %}<|h|>ipython<|/h|>\n\n{{ m.content | tojson if m.content is mapping else m.content }}<|eot_id|>"
    "{% else %}<|h|>{{ m.role }}<|/h|>\n\n{% if loop.index0 == 0 and tools %}Given functions:\n{% for t in tools %}"
    "{{ t | tojson(indent=4) }}\n\n{% endfor %}{% endif %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    f"{_ASK}<|h|>assistant<|/h|>\n\n{{% endif %}}",
    # Mistral 7B v0.3: a list of calls with ids of nine characters, closed by EOS.
    "mistral": "{{ bos_token }}{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
    "{% if c.id is not defined or c.id | length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    '{% endif %}{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
    "{{ ', ' if not loop.last }}{% endfor %}]{{ eos_token }}{% elif m.role == 'tool' %}"
    '[TOOL_RESULTS] {"content": {{ m.content }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]'
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    # DeepSeek V3: arguments are concatenated, and so must be a string.
    "deepseek": "{{ bos_token }}{% for t in tools or [] %}## {{ t.function.name }}\n{% endfor %}{% for m in messages %}"
    "{% if m.role == 'user' %}<|User|>{{ m.content }}{% elif m.tool_calls %}<|Assistant|>{{ m.content }}<|calls|>{% for c in m.tool_calls %}"
    "{{ '<|call|>' + c.type + '<|sep|>' + c.function.name + '\n```json\n' + c.function.arguments + '\n```<|/call|>' }}{% endfor %}"
    "<|/calls|>{{ eos_token }}{% elif m.role == 'tool' %}<|output|>{{ m.content }}<|/output|>{% elif m.role == 'assistant' %}"
    "{% if loop.previtem.role != 'tool' %}<|Assistant|>{% endif %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    f"{_ASK}{{% if messages[-1].role != 'tool' %}}<|Assistant|>{{% endif %}}{{% endif %}}",
    # Functionary: arguments are printed, so that an object would be shown as Python shows it.
    "functionary": "{% for t in tools or [] %}// {{ t.function.name }}\n{% endfor %}{% for m in messages %}<|h|>{{ m.role }}<|/h|>\n\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<function={{ c.function.name }}>{{ c.function.arguments }}</function>{% endfor %}"
    "<|eot_id|>{% endfor %}" + f"{_ASK}<|h|>assistant<|/h|>\n\n{{% endif %}}",
    # Qwen3-Coder: an element for each argument.
    "qwen3-coder": "{% for t in tools or [] %}<function><name>{{ t.function.name }}</name></function>{% endfor %}{% for m in messages %}"
    "<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n{% if m.role == 'tool' %}<tool_response>\n{{ m.content }}\n"
    "</tool_response>{% else %}{{ m.content }}{% endif %}{% for c in m.tool_calls or [] %}\n<tool_call>\n<function={{ c.function.name }}>\n"
    "{% for k, v in c.function.arguments | items %}<parameter={{ k }}>\n{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}"
    "</function>\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}" + f"{_ASK}<|im_start|>assistant\n{{% endif %}}",
    # GLM-4.5: nothing closes a turn.
    "glm4.5": "[gMASK]<sop>{% for t in tools or [] %}{{ t | tojson(ensure_ascii=False) }}\n{% endfor %}{% for m in messages %}"
    "{% if m.role == 'tool' %}{% if loop.previtem.role != 'tool' %}<|observation|>{% endif %}\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}{% for c in m.tool_calls or [] %}\n<tool_call>{{ c.function.name }}\n"
    "{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n"
    "{% endfor %}</tool_call>{% endfor %}{% endif %}{% endfor %}" + f"{_ASK}<|assistant|>\n{{% endif %}}",
    # Command R: a list of actions in a block of code.
    "command-r": "{{ bos_token }}{% for t in tools or [] %}def {{ t.function.name }}()\n{% endfor %}{% for m in messages %}"
    "<|START|><|{{ {'assistant': 'CHATBOT', 'tool': 'SYSTEM'}.get(m.role, m.role | upper) }}|>{% if m.tool_calls %}Action: ```json\n["
    '{% for c in m.tool_calls %}{"tool_name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}'
    "{{ ',' if not loop.last }}{% endfor %}]```{% else %}{{ m.content }}{% endif %}<|END|>{% endfor %}"
    f"{_ASK}<|START|><|CHATBOT|>{{% endif %}}",
    # Granite 3: a token announces the list of calls.
    "granite": "{% if tools %}<|r|>tools<|/r|>{{ tools | tojson(indent=4) }}<|end|>\n{% endif %}{% for m in messages %}<|r|>{{ m.role }}<|/r|>"
    "{% if m.tool_calls %}<|tool_call|>{{ m.tool_calls | map(attribute='function') | list | tojson }}{% else %}{{ m.content }}{% endif %}"
    "<|end|>\n{% endfor %}" + f"{_ASK}<|r|>assistant<|/r|>{{% endif %}}",
}
# A line break behind a tag is not rendered, one in an expression is.
TOOL_TEMPLATES = {name: source.replace("%}\n", "%}{{ '\n' }}") for name, source in TOOL_TEMPLATES.items()}
AS_STRINGS = ("deepseek", "functionary")
"""Templates that expect the arguments of a call as a string."""

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "units": {"type": "object"}},
            "required": ["city"],
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


def call(name: str, number: int = 0, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "id": f"call{number:05}", "function": {"name": name, "arguments": arguments}}


def result(content: str, number: int = 0) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call{number:05}", "content": content}


_USER = {"role": "user", "content": "What is the weather in Malmö?"}
_OSLO = call("get_weather", city='Malmö "Sö\'der"', days=2, units={"temperature": "°C", "wind": None})
_END = {"role": "assistant", "content": "It is 11 degrees there."}


def _calls(*calls: dict[str, Any], content: str = "") -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": [*calls]}


CHATS: dict[str, list[dict[str, Any]]] = {
    "call": [_USER, _calls(_OSLO)],
    "answer": [_USER, _calls(_OSLO), result('{"degrees": 11}'), _END],
    "no arguments": [_USER, _calls(call("now")), result("12:00"), _END],
    "two calls": [_USER, _calls(_OSLO, call("now", 1)), result('{"degrees": 11}'), result("12:00", 1), _END],
    "one after the other": [_USER, _calls(_OSLO), result("11"), _calls(call("now", 1)), result("12:00", 1), _END],
    "with words": [_USER, _calls(_OSLO, content="I look it up."), result("11"), _END],
    "later": [{"role": "system", "content": "Be short."}, _USER, _END, _USER, _calls(_OSLO), result("11"), _END, _USER, _END],
    "without a call": [_USER, _END],
}
