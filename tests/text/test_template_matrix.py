"""The table of tutorials/data.md: chat templates and conversations, each rendered as transformers does and trained as asked."""

import json

import pytest
from conftest import REPOSITORY
from thought_templates import THOUGHT_CHATS, THOUGHT_TEMPLATES
from tiny import make_tokenizer
from tool_templates import AS_STRINGS, CHATS, CLOCK, TOOL_TEMPLATES, WEATHER
from transformers import AutoTokenizer

from lit_llm.data.examples import tokenize
from lit_llm.text.conversation import documents, prompt_ids, prompt_style
from lit_llm.text.tokenizer import Tokenizer

TEMPLATES = {**TOOL_TEMPLATES, **{f"{name} (thoughts)": source for name, source in THOUGHT_TEMPLATES.items()}}
FIELDS = {"qwen3 (thoughts)": "reasoning_content", "glm4.5 (thoughts)": "reasoning_content", "gpt-oss (thoughts)": "thinking"}
OMITS = ("deepseek-r1 (thoughts)", "deepseek-v3.1 (thoughts)")
"""Templates that render no thought, whatever its form."""
CLOSES_NOTHING = ("glm4.5", "glm4.5 (thoughts)")
SYSTEM = {"role": "system", "content": "Be short."}


def _thinking(messages):
    return [{**m, "reasoning_content": "Let me see."} if m["role"] == "assistant" else m for m in messages]


KINDS = {
    "turns": THOUGHT_CHATS["no thoughts"],
    "system": [SYSTEM, *THOUGHT_CHATS["no thought"]],
    "call": CHATS["answer"],
    "two calls": CHATS["two calls"],
    "calls in turn": CHATS["one after the other"],
    "thought": THOUGHT_CHATS["thought"],
    "thoughts": THOUGHT_CHATS["two thoughts"],
    "thoughts and calls": _thinking(CHATS["answer"]),
}
REFUSED = {("llama3.1", "two calls"): "only supports single tool-calls"}


def as_upstream(name, messages):
    """Messages as users of transformers must write them for this template."""
    found = json.loads(json.dumps(messages))
    for message in found:
        thought = message.pop("reasoning_content", "")
        if thought and (field := FIELDS.get(name)):
            message[field] = thought
        elif thought and name not in OMITS:
            message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
        for call in message.get("tool_calls", ()) if name in AS_STRINGS else ():
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return found


def expected(name, reference, messages, tools):
    """The prompt of each answer, and the answer, by transformers; a thought that it omits is before the answer."""
    theirs, found = as_upstream(name, messages), []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = reference.apply_chat_template(theirs[:i], tools=tools, tokenize=False, add_generation_prompt=True)
        answered = reference.apply_chat_template(theirs[: i + 1], tools=tools, tokenize=False)
        thought = message.get("reasoning_content", "")
        opening = "<think>\n"
        if asked.endswith(opening):
            answered = f"{asked}{thought}\n</think>\n\n{answered.removeprefix(asked.removesuffix(opening))}"
        elif thought and thought not in answered[len(asked) :] and not asked.endswith("</think>"):
            answered = f"{asked}<think>\n{thought}\n</think>\n\n{answered.removeprefix(asked)}"
        assert answered.startswith(asked)
        found.append((asked, answered[len(asked) :].rstrip() + (reference.eos_token if name in CLOSES_NOTHING else "")))
    return found


def cell(name, kind, tokenizer, reference):
    """The number of examples of a conversation, after checking their texts, ids and labels; `-` if it is refused."""
    messages = KINDS[kind]
    tools = [WEATHER, CLOCK] if "call" in kind else None
    record = {"messages": messages, **({"tools": tools} if tools else {})}
    if message := REFUSED.get((name, kind)):
        with pytest.raises(ValueError, match=message):
            tokenize(record, "chat_template", tokenizer, True)
        return "-"
    tokens = {**({"tools": tools} if tools else {}), **tokenizer.special_tokens}
    found = documents(prompt_style("chat_template", tokenizer), messages, tokens, "all")
    answers = [("".join(s.text for s in d[:i]), d[i].text) for d in found for i in range(1, len(d), 2) if d[i].trained]
    if name in CLOSES_NOTHING:
        answers = [(before.replace(reference.eos_token, ""), answer) for before, answer in answers]
    assert answers == expected(name, reference, messages, tools)
    example = tokenize(record, "chat_template", tokenizer, True)
    labels = [int(d.trained.sum()) for d in example.documents]
    assert sum(labels) == sum(len(tokenizer.encode_more(answer)) for _, answer in answers)
    last, theirs = example.documents[-1], as_upstream(name, messages)
    asked = {"add_generation_prompt": True, "return_dict": False}
    ids = reference.apply_chat_template(theirs[:-1], tools=tools, **asked)
    starts = [] if ids[:1] == [tokenizer.bos_id] else [tokenizer.bos_id]
    assert prompt_ids("chat_template", tokenizer, messages[:-1], variables={"tools": tools}) == starts + ids
    start = prompt_ids("chat_template", tokenizer, messages[:-1], True, {"tools": tools} if tools else {})
    assert last.ids[: len(start)].tolist() == start
    assert last.trained[len(start) :].all()
    return str(len(found))


def test_the_table_of_templates_is_that_of_the_tutorial(tmp_path):
    rows = [["template", *KINDS]]
    for number, (name, source) in enumerate(TEMPLATES.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        make_tokenizer(folder)
        (folder / "chat_template.jinja").write_text(source)
        tokenizer, reference = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
        rows.append([name, *(cell(name, kind, tokenizer, reference) for kind in KINDS)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    table = "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
    assert table in (REPOSITORY / "tutorials" / "data.md").read_text()
