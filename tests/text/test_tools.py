"""Conversations with tools: rendered as transformers does, and the calls and answers are trained, nothing else."""

import json
import re

import pytest
from tiny import make_tokenizer
from tool_templates import AS_STRINGS, CHATS, CLOCK, TOOL_TEMPLATES, WEATHER
from transformers import AutoTokenizer

from lit_llm.data.examples import answer_text, tokenize
from lit_llm.data.records import check_record, variables_of
from lit_llm.generation.prompt_file import as_messages, read_lines
from lit_llm.text.conversation import documents, prompt_ids, prompt_style
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.training.preflight import show

TOOLS = [WEATHER, CLOCK]


@pytest.fixture(scope="module", params=TOOL_TEMPLATES)
def template(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    make_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TOOL_TEMPLATES[request.param]}))
    return request.param, Tokenizer(folder), AutoTokenizer.from_pretrained(folder)


def as_upstream(name, messages):
    """Messages with arguments in the form that users of transformers must give this template."""
    if name not in AS_STRINGS:
        return messages
    messages = json.loads(json.dumps(messages))
    for message in messages:
        for each in message.get("tool_calls", ()):
            each["function"]["arguments"] = json.dumps(each["function"]["arguments"], ensure_ascii=False)
    return messages


REFUSED = {
    ("llama3.1", "two calls"): "only supports single tool-calls",
    ("llama3.1", "with words"): "omits a part of the answer 'I look it up.'",
    ("command-r", "with words"): "omits a part of the answer 'I look it up.'",
    ("granite", "with words"): "omits a part of the answer 'I look it up.'",
    ("mistral", "with words"): "omits a part of the answer 'I look it up.'",
    ("mistral", "later"): None,
}


@pytest.mark.parametrize("chat", CHATS)
def test_text_ids_and_mask_of_a_conversation_with_tools(template, chat):
    name, tokenizer, reference = template
    record = {"messages": CHATS[chat], "tools": TOOLS}
    check_record(record)
    if message := REFUSED.get((name, chat)):
        with pytest.raises(ValueError, match=message):
            tokenize(record, "chat_template", tokenizer, True)
        return
    example = tokenize(record, "chat_template", tokenizer, True)
    theirs = as_upstream(name, record["messages"])
    text = reference.apply_chat_template(theirs, tools=TOOLS, tokenize=False)
    closing = reference.eos_token if name == "glm4.5" else ""
    (segments,) = documents(
        prompt_style("chat_template", tokenizer), record["messages"], {"tools": TOOLS, **tokenizer.special_tokens}, "all"
    )
    ours = "".join(segment.text.removesuffix(closing) if segment.trained else segment.text for segment in segments)
    assert ours == text.rstrip()
    assert tokenizer.decode(example.ids.tolist()) == tokenizer.decode(tokenizer.encode("".join(s.text for s in segments)))
    trained = [segment.text for segment in segments if segment.trained]
    assert len(trained) == sum(message["role"] == "assistant" for message in record["messages"])
    for i, message in enumerate(record["messages"]):
        if message["role"] == "assistant":
            asked = reference.apply_chat_template(theirs[:i], tools=TOOLS, tokenize=False, add_generation_prompt=True)
            answered = reference.apply_chat_template(theirs[: i + 1], tools=TOOLS, tokenize=False)
            assert trained.pop(0) == answered.removeprefix(asked).rstrip() + closing
            ids = prompt_ids("chat_template", tokenizer, record["messages"][:i], variables={"tools": TOOLS})
            theirs_ids = reference.apply_chat_template(theirs[:i], tools=TOOLS, add_generation_prompt=True, return_dict=False)
            assert ids == ([] if asked.startswith("<s>") else [tokenizer.bos_id]) + theirs_ids


def test_the_reference_of_a_call_is_the_call_as_it_is_written(template):
    name, tokenizer, _ = template
    answer = answer_text({"messages": CHATS["call"], "tools": TOOLS}, "chat_template", tokenizer)
    assert answer.startswith({
        "qwen2.5": '<tool_call>\n{"name": "get_weather", "arguments": {', "llama3.1": '{"name": "get_weather", "parameters": {',
        "mistral": '[TOOL_CALLS] [{"name": "get_weather"', "deepseek": "<|calls|><|call|>function", "command-r": "Action: ",
        "functionary": "<function=get_weather>{", "qwen3-coder": "<tool_call>\n<function=get_weather>\n<parameter=city>",
        "glm4.5": "<tool_call>get_weather\n<arg_key>city", "granite": "<|tool_call|>[",
    }[name])  # fmt: skip
    assert not answer.endswith(("<|im_end|>", "<|eot_id|>", "</s>", "<|END|>", "<|end|>"))


def test_a_prompt_of_a_file_has_its_tools_and_results(template, tmp_path):
    """With arguments as OpenAI's API has them, in strings."""
    name, tokenizer, reference = template
    messages = CHATS["answer"]
    asked = as_upstream(AS_STRINGS[0], messages)[:-1]
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"messages": asked, "tools": TOOLS}))
    (prompt,) = read_lines(tmp_path / "prompts.jsonl")
    ids = prompt_ids("chat_template", tokenizer, as_messages(prompt), True, variables_of(prompt))
    example = tokenize({"messages": messages, "tools": TOOLS}, "chat_template", tokenizer, True)
    assert example.ids[: len(ids)].tolist() == ids
    text = reference.apply_chat_template(
        as_upstream(name, messages)[:-1], tools=TOOLS, tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(ids).replace("</s>", "") == tokenizer.decode(tokenizer.encode(text)).replace("</s>", "")


def test_what_is_shown_has_calls_within_the_marks_and_results_outside(template):
    _, tokenizer, _ = template
    text = show(tokenize({"messages": CHATS["answer"], "tools": TOOLS}, "chat_template", tokenizer, True), tokenizer, False)
    call, answer = re.findall("⟦(.*?)⟧", text, re.DOTALL)
    assert "get_weather" in call
    assert CHATS["answer"][-1]["content"] in answer
    assert '"degrees' not in call + answer
    outside = re.sub("⟦.*?⟧", "", text, flags=re.DOTALL)
    assert "degrees" in outside
    assert "get_weather" in outside


def test_a_style_of_the_table_refuses_calls_and_results(template):
    _, tokenizer, _ = template
    for chat in ("call", "answer"):
        with pytest.raises(ValueError, match=r"does not render 'tool_calls'|no turns of the role tool"):
            tokenize({"messages": CHATS[chat]}, "alpaca", tokenizer, True)
