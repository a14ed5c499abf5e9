# ruff: noqa: E501  -- templates as they are published
"""Rendering against transformers; the masks against what a model is asked with."""

import json
import shutil

import pytest
from tiny import make_tokenizer

from lit_llm.data.examples import answer_text, tokenize, unrendered_fields
from lit_llm.text.chat_template import ChatTemplate
from lit_llm.text.conversation import default_style, documents, encode, prompt, prompt_ids, prompt_style
from lit_llm.text.ending import ending
from lit_llm.text.styles import STYLES
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.text.turns import check_messages

# As the families publish them in their tokenizer_config.json.
TEMPLATES = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "qwen2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a "
    "helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}"
    "\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == "
    "'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and "
    "add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation "
    "roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = "
    "'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim "
    "+ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    "mistral": "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ "
    "raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == "
    "'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + "
    "eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]"
    "['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in "
    "loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must "
    "alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content "
    "= '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}"
    "{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif "
    "message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "phi3": "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' "
    "%}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|assistant|>\n' }}{% endif %}",
    "openchat": "{{ bos_token }}{% for message in messages %}{{ 'GPT4 Correct ' + message['role'].title() + ': ' + "
    "message['content'] + '<|end_of_turn|>'}}{% endfor %}{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}",
    "falcon": "{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}{% if message['role'] == 'system' %}"
    "{{ 'System: ' }}{% elif message['role'] == 'user' %}{{ 'User: ' }}{% elif message['role'] == 'assistant' %}{{ 'Falcon: ' }}"
    "{% endif %}{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '\n' + 'Falcon:' }}{% endif %}",
    "vicuna": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'] + ' ' %}{% else %}{% set loop_messages = messages %}{% set system_message = '' %}{% endif %}"
    "{{ system_message }}{% for message in loop_messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' "
    "}}{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ 'ASSISTANT:' }}{% endif %}",
    "helpers": "{%- for m in messages %}\n  {%- if m.role == 'system' %}{% continue %}{% endif %}\n{{ m | tojson }}"
    "{% generation %}<{{ m.content }}>{% endgeneration %}{%- endfor %}{{ strftime_now('%Y') }}",
}  # fmt: skip

CHAT = [
    {"role": "user", "content": "the red cat "},
    {"role": "assistant", "content": 'sees a "dog" & {bird}\n<b>'},
    {"role": "user", "content": "and  the blue one"},
    {"role": "assistant", "content": "likes it"},
]
SYSTEM = [{"role": "system", "content": "be small"}, *CHAT]


def checkpoint_with(folder, template, **config):
    make_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template, **config}))
    return folder


def compare_with_transformers(folder, messages):
    from transformers import AutoTokenizer

    reference, tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
    style = prompt_style("chat_template", tokenizer)
    for last, generation in ((len(messages), False), (len(messages) - 1, True), (len(messages) - 3, True)):
        chat = messages[:last]
        try:
            expected = reference.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation)
        except Exception as error:
            with pytest.raises(ValueError, match="chat template cannot render") as told:
                style.render(chat, generation, tokenizer.special_tokens)
            assert str(error) in str(told.value)  # noqa: PT017
            continue
        assert style.render(chat, generation, tokenizer.special_tokens) == expected
        if generation and expected.startswith("<s>"):
            ids = reference.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
            assert prompt_ids("chat_template", tokenizer, chat) == ids


@pytest.mark.parametrize("messages", [CHAT, SYSTEM], ids=["chat", "system"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(tmp_path, name, messages):
    compare_with_transformers(checkpoint_with(tmp_path, TEMPLATES[name]), messages)


@pytest.mark.parametrize("messages", [CHAT, SYSTEM], ids=["chat", "system"])
def test_llama_3_renders_as_in_transformers(tmp_path, shared_data, messages):
    config = json.loads((shared_data / "config_facts" / "llama3_tokenizer_config.json").read_text())
    compare_with_transformers(checkpoint_with(tmp_path, config["chat_template"]), messages)


def test_template_of_a_file_and_of_a_list_are_found(tmp_path):
    listed = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]
    assert Tokenizer(checkpoint_with(tmp_path, listed)).chat_template == "y"
    (tmp_path / "chat_template.jinja").write_text("z")
    assert Tokenizer(tmp_path).chat_template == "z"


PUBLISHED = {"chatml": "chatml", "zephyr": "zephyr", "gemma": "gemma", "mistral_instruct": "mistral", "llama2": "llama2"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_styles_of_the_table_render_as_the_published_templates(name):
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    published = ChatTemplate(TEMPLATES[PUBLISHED[name]])
    chat = [{**m, "content": m["content"].strip()} for m in CHAT]
    ours = STYLES[name].render(chat, False, tokens)
    assert ours == published.render(chat, False, tokens).removeprefix("<s>" if name == "llama2" else "")
    ours = STYLES[name].render(chat[:-1], True, tokens)
    expected = published.render(chat[:-1], True, tokens).removeprefix("<s>" if name == "llama2" else "")
    assert ours == expected.removesuffix("\n") + ("\n" if name in ("zephyr", "gemma", "chatml") else "")


ALL = [*STYLES, *(f"template {name}" for name in TEMPLATES if name != "helpers")]


def style_of(name):
    return ChatTemplate(TEMPLATES[name.removeprefix("template ")]) if name.startswith("template ") else STYLES[name]


@pytest.fixture(scope="module", params=["byte-level", "tokenizer_llama2_hf", "tokenizer_mistral_hf", "sentencepiece"])
def any_tokenizer(request, tmp_path_factory):
    """With and without a space before a text, of either backend."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "byte-level":
        make_tokenizer(folder)
        return Tokenizer(folder)
    shared = request.getfixturevalue("shared_data")
    source = shared / ("tokenizer_llama2_hf" if request.param == "sentencepiece" else request.param)
    shutil.copytree(source, folder, dirs_exist_ok=True)
    if request.param == "sentencepiece":
        (folder / "tokenizer.json").unlink()
    return Tokenizer(folder)


@pytest.mark.parametrize("name", ALL)
def test_training_equals_inference_up_to_every_answer(any_tokenizer, name):
    """Round trip, in text and in tokens; exactly the answers and what closes them are trained."""
    style, tokens = style_of(name), any_tokenizer.special_tokens
    (segments,) = documents(style, CHAT, tokens, "all")
    ids, trained = encode(segments, any_tokenizer)
    starts = [i for i, t in enumerate(trained) if t and not trained[i - 1]]
    assert len(starts) == 2
    for n, start in zip((1, 3), starts, strict=True):
        asked, _ = encode(prompt(style, CHAT[:n], tokens), any_tokenizer)
        assert ids[:start] == asked
        assert "".join(s.text for s in segments[:n]) == "".join(s.text for s in prompt(style, CHAT[:n], tokens))
    assert "".join(segment.text for segment in segments).count("likes it") == 1
    for (text, is_trained, _), message in zip(segments, CHAT, strict=True):
        assert message["content"].strip() in text
        assert is_trained == (message["role"] == "assistant")
    answers, after = [any_tokenizer.encode_more(segments[i].text) for i in (1, 3)], len(ids)
    assert [i for i, t in zip(ids, trained, strict=True) if t] == answers[0] + answers[1]
    assert trained[after - 1]
    assert ids.count(any_tokenizer.bos_id) == ids[:1].count(any_tokenizer.bos_id) + ("llama2" in name or name == "codellama")
    if not any(token in segments[3].text for token in ("<|im_end|>", "<|eot_id|>", "end_of_turn", "<|end|>")):
        assert answers[1][-1] == any_tokenizer.eos_id
        assert answers[1].count(any_tokenizer.eos_id) == 1


def test_tokens_equal_those_of_the_whole_text(any_tokenizer):
    """Where the style sets special tokens at the boundaries, as Llama 2's, cutting changes nothing."""
    style = STYLES["llama2"]
    (segments,) = documents(style, CHAT, any_tokenizer.special_tokens, "all")
    ids, _ = encode(segments, any_tokenizer)
    assert ids == any_tokenizer.encode("".join(segment.text for segment in segments))


def test_only_the_last_answer_is_trained_if_asked(checkpoint):
    tokenizer = Tokenizer(checkpoint)
    record = {"messages": CHAT}
    every, last = (tokenize(record, "alpaca", tokenizer, True, train_on) for train_on in ("all", "last"))
    assert every.ids.tolist() == last.ids.tolist()
    first = last.trained.tolist().index(True)
    assert last.trained[first:].all()
    assert tokenizer.decode(last.ids[first:].tolist()) == "likes it"
    assert every.n_labels > last.n_labels


def test_an_answer_of_weight_0_is_read_and_not_trained(checkpoint):
    tokenizer = Tokenizer(checkpoint)
    every = tokenize({"messages": CHAT}, "alpaca", tokenizer, True)
    last = tokenize({"messages": CHAT}, "alpaca", tokenizer, True, "last")
    n = next(i for i, message in enumerate(CHAT) if message["role"] == "assistant")
    first_off = [{**message, "weight": 0} if i == n else message for i, message in enumerate(CHAT)]
    found = tokenize({"messages": first_off}, "alpaca", tokenizer, True)
    assert found.ids.tolist() == every.ids.tolist()
    assert last.n_labels <= found.n_labels < every.n_labels
    assert sum(m["role"] == "assistant" for m in CHAT) == 2
    assert found.trained.tolist() == last.trained.tolist()
    last_off = [*CHAT[:-1], {**CHAT[-1], "weight": 0}]
    both = tokenize({"messages": last_off}, "alpaca", tokenizer, True).trained | last.trained
    assert both.tolist() == every.trained.tolist()
    with pytest.raises(ValueError, match="which `mask_prompt` false would train"):
        tokenize({"messages": first_off}, "alpaca", tokenizer, False)
    with pytest.raises(ValueError, match="Train with `train_on` all"):
        tokenize({"messages": last_off}, "alpaca", tokenizer, True, "last")


REWRITES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | upper if m.role == 'assistant' and not loop.last else m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ALWAYS_OPENS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}<assistant>"
CHANGES = "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (ALWAYS_OPENS, "opens another answer"),
        (CHANGES, "asks with 'model>' but renders 'assistant>"),
        ("{{ raise_exception('no cats here') }}", "cannot render a conversation of user, assistant, user: no cats here"),
        ("{% for %}", "cannot render"),
        ("{{ messages[0].nothing.here }}", "cannot render"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot render"),
    ],
)
def test_a_template_that_cannot_be_trained_on_is_told(template, message):
    with pytest.raises(ValueError, match=message.replace("(", "\\(").replace("[", "\\[")):
        documents(ChatTemplate(template), CHAT, {"eos_token": "</s>"}, "all")


def test_a_template_without_headers_does_not_count_as_opening():
    style = ChatTemplate("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    (segments,) = documents(style, CHAT, {"eos_token": "</s>"}, "all")
    texts = [segment.text for segment in segments]
    assert texts == [f"{m['content']}</s>" for m in CHAT]


def test_a_rewritten_history_trains_each_answer_in_a_document():
    first, second = documents(ChatTemplate(REWRITES), CHAT, {"eos_token": "</s>"}, "all")
    assert first == documents(ChatTemplate(REWRITES), CHAT[:2], {"eos_token": "</s>"}, "all")[0]
    assert [second] == documents(ChatTemplate(REWRITES), CHAT, {"eos_token": "</s>"}, "last")
    assert CHAT[1]["content"].upper() in second[0].text


def test_a_rewritten_history_trains_its_last_answer():
    (segments,) = documents(ChatTemplate(REWRITES), CHAT, {"eos_token": "</s>"}, "last")
    assert [segment.trained for segment in segments] == [False, True]
    assert segments[0].text == prompt(ChatTemplate(REWRITES), CHAT[:3], {})[0].text
    assert segments[1].text == "likes it|"


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ("", "must be a list"),
        ("u", "last turn is not the assistant's"),
        ("s", "last turn is not the assistant's"),
        ("au", "out of order"),
        ("uua", "out of order"),
        ("usa", "out of order"),
        ("ux", "is not system, user, assistant or tool"),
        ("ut", "a result of a tool has no call before it"),
    ],
)
def test_roles_out_of_order_are_refused(roles, message):
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool", "x": "expert"}
    with pytest.raises(ValueError, match=message):
        check_messages([{"role": names[r], "content": "x"} for r in roles])


@pytest.mark.parametrize("name", STYLES)
def test_a_stop_string_is_where_the_next_turn_begins(name, checkpoint):
    """What follows an answer in a conversation begins with EOS, or with a text that ends the answer."""
    tokenizer = Tokenizer(checkpoint)
    style, tokens = prompt_style(name, tokenizer), tokenizer.special_tokens
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    stop = ending(name, tokenizer).strings
    behind = (
        style.render([*turns, turns[0]], True, tokens)[len(style.render(turns[:1], True, tokens)) :].lstrip().removeprefix("b")
    )
    at = min((behind.find(text) for text in stop if text in behind), default=None)
    assert behind.strip().startswith(tokens["eos_token"]) or (at is not None and not behind[:at].strip())
    if behind.strip().startswith(tokens["eos_token"]) and STYLES[name].stop:  # a model that leaves out EOS goes on so
        assert any(text in behind for text in stop)


def test_a_special_token_that_closes_a_turn_is_no_stop_string(tmp_path):
    """It is never decoded; a tokenizer without it writes it in letters, which are."""
    make_tokenizer(tmp_path)
    assert ending("chatml", Tokenizer(tmp_path)).strings == ("<|im_end|>",)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "additional_special_tokens": ["<|im_end|>"]}))
    assert ending("chatml", Tokenizer(tmp_path)).strings == ()
    assert ending("falcon_instruct", Tokenizer(tmp_path)).strings == ("\nUser:",)


@pytest.mark.parametrize("eos", [True, False], ids=["EOS", "closing"])
def test_the_visible_text_is_the_one_that_was_encoded(any_tokenizer, eos):
    """Spaces alone and next to special tokens included: a token that is a space is not a special one."""
    end = any_tokenizer.special_tokens["eos_token"] if eos else ""
    for text in (
        "say  two  spaces",
        f"a {end} b",
        f"a{end}b  {end}  c{end}{end} ",
        f" x\n  y{end}z  {end} w",
        f"  {end}  ",
        "é 🙂 ▁",
    ):
        ids = any_tokenizer.encode(text, bos=False)
        assert any_tokenizer.decode_visibly(ids) == (
            text if "▁" in text and "▁" in any_tokenizer.decode(ids) else text.replace("▁", " ")
        )
        with_bos = any_tokenizer.decode_visibly(any_tokenizer.encode(f"x{text}", bos=True))
        assert with_bos.startswith(f"{any_tokenizer.special_tokens['bos_token']}x{text[:3]}")


# As those of Qwen3.5 and Nemotron 3 do, in short: the prompt opens the thought.
OPENS_THOUGHT = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}<assistant><think>\n"
    "{% if parts | length > 1 %}{{ parts[0].split('<think>')[-1].strip() }}{% endif %}\n</think>\n\n{{ parts[-1].strip() }}CLOSE"
    "{% else %}<{{ m.role }}>{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)


@pytest.mark.parametrize(
    "content", ["<think>\nadd them\n</think>\n\n4", "<think>add them</think>4", "add them\n</think>\n\n4", "4"]
)
@pytest.mark.parametrize("closing", ["{{ eos_token }}\n", "<|end|>", " THE END\n\n", ""])
def test_a_thought_that_the_prompt_opens_is_trained_once(tmp_path, closing, content):
    from transformers import AutoTokenizer

    folder = checkpoint_with(tmp_path, OPENS_THOUGHT.replace("CLOSE", closing))
    tokenizer, reference = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    chat = [CHAT[0], {"role": "assistant", "content": content}]
    style = prompt_style("chat_template", tokenizer)
    (((asked, *_), (answer, trained, _)),) = documents(style, chat, tokenizer.special_tokens, "all")
    assert trained
    assert asked == reference.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert asked + answer == reference.apply_chat_template(chat, tokenize=False).rstrip() + ("" if closing else "</s>")
    assert tokenize({"messages": chat}, style, tokenizer, True).n_labels == len(tokenizer.encode_more(answer))


def test_an_answer_that_lacks_its_beginning_is_refused():
    """The prompt does not have the part that the template omits."""
    template = OPENS_THOUGHT.replace("CLOSE", "|").replace("{{ parts[-1].strip() }}", "{{ parts[-1].strip()[1:] }}")
    with pytest.raises(ValueError, match="omits a part of the answer"):
        documents(ChatTemplate(template), [CHAT[0], {"role": "assistant", "content": "<think>why</think>be"}], {}, "all")


def test_a_thought_that_the_template_omits_is_trained():
    template = OPENS_THOUGHT.replace("CLOSE", "|").replace("parts[0].split('<think>')[-1].strip()", "''")
    chat = [CHAT[0], {"role": "assistant", "content": "<think>why</think>b"}]
    (((asked, *_), (answer, trained, _)),) = documents(ChatTemplate(template), chat, {}, "all")
    assert (asked[-7:], answer, trained) == ("think>\n", "why\n</think>\n\nb|", True)


FIELDS = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{% for d in documents or [] %}({{ d.text }}){% endfor %}"
    "{% if shout %}LOUD{% endif %}{% for m in messages %}<{{ m.role }}{{ ' ' + m.name if m.name }}>"
    "{% if m.thinking and loop.last %}<think>{{ m.thinking }}</think>{% endif %}{{ m.content }}|"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]


def test_fields_are_trained_as_transformers_renders_them(tmp_path):
    from transformers import AutoTokenizer

    folder = checkpoint_with(tmp_path, FIELDS)
    tokenizer, reference = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    chat = [{**CHAT[0], "name": "ann"}, {**CHAT[1], "thinking": "a dog?"}]
    record = {"messages": chat, "tools": TOOLS, "documents": [{"text": "facts"}], "chat_template_kwargs": {"shout": True}}
    expected = reference.apply_chat_template(chat, tools=TOOLS, documents=record["documents"], shout=True, tokenize=False)
    example = tokenize(record, "chat_template", tokenizer, True)
    assert tokenizer.decode(example.ids.tolist()) == expected
    assert tokenizer.decode(example.ids[example.trained].tolist()) == f"<think>a dog?</think>{CHAT[1]['content']}|"
    for untrained in ({}, {"weight": 0}):
        told = {**record, "messages": [chat[0], {**chat[1], **untrained}]}
        assert answer_text(told, "chat_template", tokenizer) == f"<think>a dog?</think>{CHAT[1]['content']}"
    asked = {"variables": {"tools": TOOLS, "documents": record["documents"], "shout": True}}
    prompt_of = prompt_ids("chat_template", tokenizer, chat[:1], **asked)
    assert prompt_of == example.ids[: len(prompt_of)].tolist()
    assert unrendered_fields(record, "chat_template", tokenizer) == []


@pytest.mark.parametrize("style", ["alpaca", "chat_template"])
def test_a_field_that_the_style_does_not_render_is_refused_or_counted(tmp_path, style):
    tokenizer = Tokenizer(checkpoint_with(tmp_path, TEMPLATES["chatml"]))
    for record in ({"messages": CHAT, "tools": TOOLS}, {"instruction": "a", "output": "b", "functions": TOOLS}):
        with pytest.raises(ValueError, match=r"does not render '(tools|functions)'"):
            tokenize(record, style, tokenizer, True)
    record = {"messages": [{**CHAT[0], "name": "ann"}, {**CHAT[1], "id": 1, "name": "bob"}]}
    assert sorted(unrendered_fields(record, style, tokenizer)) == ["id", "name", "name"]
    assert (
        tokenize(record, style, tokenizer, True).ids.tolist()
        == tokenize({"messages": CHAT[:2]}, style, tokenizer, True).ids.tolist()
    )


@pytest.mark.parametrize(
    ("template", "found"),
    [(TEMPLATES["helpers"], ["system", "marks", "marks"]), (TEMPLATES["chatml"], [])],
)
def test_a_system_turn_that_is_not_rendered_is_counted(tmp_path, template, found):
    """And both answers, of which the marks of the template exclude the JSON."""
    tokenizer = Tokenizer(checkpoint_with(tmp_path, template))
    assert unrendered_fields({"messages": SYSTEM}, "chat_template", tokenizer) == found


def test_thoughts_that_leave_the_history_count_as_rendered(tmp_path):
    tokenizer = Tokenizer(checkpoint_with(tmp_path, FIELDS))
    record = {"messages": [CHAT[0], {**CHAT[1], "thinking": "first"}, CHAT[2], {**CHAT[3], "thinking": "two"}]}
    example = tokenize(record, "chat_template", tokenizer, True, "last")
    assert "first" not in tokenizer.decode(example.ids.tolist())
    assert tokenizer.decode(example.ids[example.trained].tolist()) == "<think>two</think>likes it|"


def test_chat_templates_without_a_default_are_not_replaced_by_alpaca(tmp_path):
    listed = [{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "y"}]
    tokenizer = Tokenizer(checkpoint_with(tmp_path, listed))
    for style in (lambda: default_style(tokenizer, is_text=False), lambda: prompt_style("chat_template", tokenizer)):
        with pytest.raises(ValueError, match="are called 'rag', 'tool_use', and none of them is called 'default'"):
            style()
    assert default_style(tokenizer, is_text=True) == "none"
    (tmp_path / "chat_template.jinja").write_text("z")
    assert default_style(Tokenizer(tmp_path), is_text=False) == "chat_template"
