"""Thoughts: rendered where a template has them, trained as each answer is asked, and the masks of `train_on`."""

import pytest
from thought_templates import THOUGHT_CHATS, THOUGHT_TEMPLATES
from tiny import make_tokenizer
from transformers import AutoTokenizer

from lit_llm.data.examples import Rewritten, answer_text, drop_long, tokenize, unrendered_fields
from lit_llm.data.records import check_record
from lit_llm.text.conversation import documents, prompt_ids, prompt_style
from lit_llm.text.styles import STYLES
from lit_llm.text.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=THOUGHT_TEMPLATES)
def template(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    make_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(THOUGHT_TEMPLATES[request.param])
    return request.param, Tokenizer(folder), AutoTokenizer.from_pretrained(folder)


def as_upstream(name, messages):
    """Messages with thoughts where users of transformers must put them for this template."""
    found = []
    for message in messages:
        message = dict(message)
        thought = message.pop("reasoning_content", None)
        if thought and name == "gpt-oss":
            message["thinking"] = thought
        elif thought and name == "smollm3":
            message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
        elif thought and name in ("qwen3", "glm4.5"):
            message["reasoning_content"] = thought
        found.append(message)
    return found


def in_shape(message, shape):
    """The message with its thought in a field of this name, or between tags."""
    message = dict(message)
    thought = message.pop("reasoning_content", None)
    if thought and shape == "tags":
        message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
    elif thought:
        message[shape] = thought
    return message


def answers_of(name, reference, messages, **variables):
    """The prompt of each answer and the answer, as transformers renders them."""
    theirs, found = as_upstream(name, messages), []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = reference.apply_chat_template(theirs[:i], tokenize=False, add_generation_prompt=True, **variables)
        answered = reference.apply_chat_template(theirs[: i + 1], tokenize=False, **variables)
        if asked.endswith("<think>\n") and name == "deepseek-r1":  # no turn of the template has a thought: the model writes it
            answered = f"{asked}{message.get('reasoning_content', '')}\n</think>\n\n{message['content']}</s>"
        assert answered.startswith(asked)
        found.append((asked, answered[len(asked) :].rstrip() + ("</s>" if name == "glm4.5" else "")))  # which closes no turn
    return found


def trained_answers(name, found):
    """The text before each trained answer, and the answer."""
    answers = [("".join(s.text for s in d[:i]), d[i].text) for d in found for i in range(1, len(d), 2) if d[i].trained]
    return [(before.replace("</s>", "") if name == "glm4.5" else before, text) for before, text in answers]


N_DOCUMENTS = {
    "qwen3": {"two thoughts": 2, "one of two": 2, "no thoughts": 2},  # the last turn has an empty thought
    "deepseek-r1": {"two thoughts": 2, "one of two": 2, "no thoughts": 2},  # the prompt opens a thought
    "glm4.5": {"two thoughts": 2},
    "gpt-oss": {"two thoughts": 2, "one of two": 2, "no thoughts": 2},  # the last turn is closed by another token
}
"""Conversations whose earlier turns are rendered differently once others follow."""


@pytest.mark.parametrize("shape", ["reasoning_content", "thinking", "reasoning", "tags"])
@pytest.mark.parametrize("chat", THOUGHT_CHATS)
def test_each_answer_is_trained_as_it_is_asked(template, chat, shape):
    name, tokenizer, reference = template
    given = [in_shape(message, shape) for message in THOUGHT_CHATS[chat]]
    check_record({"messages": given})
    found = documents(prompt_style("chat_template", tokenizer), given, tokenizer.special_tokens, "all")
    assert trained_answers(name, found) == answers_of(name, reference, THOUGHT_CHATS[chat])
    assert len(found) == N_DOCUMENTS.get(name, {}).get(chat, 1)
    example = tokenize({"messages": given}, "chat_template", tokenizer, True)
    last = example.documents[-1].ids.tolist()
    prompt = prompt_ids("chat_template", tokenizer, given[:-1], finetuned=True)
    assert last[: len(prompt)] == prompt
    assert example.documents[-1].trained[len(prompt) :].all()
    assert isinstance(example, Rewritten) == (len(found) > 1)


@pytest.mark.parametrize("chat", THOUGHT_CHATS)
def test_answers_and_thoughts_are_the_parts_of_all(template, chat):
    """Each token of an answer belongs to one of them, and their texts are those of the record."""
    name, tokenizer, _ = template
    record = {"messages": THOUGHT_CHATS[chat]}
    every, answers, thoughts = (tokenize(record, "chat_template", tokenizer, True, t) for t in ("all", "answers", "thoughts"))
    omitted = name == "deepseek-v3.1"  # asks for answers without a thought
    contents, given = [], []
    for whole, answer, thought in zip(every.documents, answers.documents, thoughts.documents, strict=True):
        assert whole.ids.tolist() == answer.ids.tolist() == thought.ids.tolist()
        assert not (answer.trained & thought.trained).any()
        rest = whole.trained & ~answer.trained & ~thought.trained  # an empty thought
        assert not "".join(tokenizer.decode(whole.ids[rest].tolist()).replace("think", "").split()).strip("</>")
        contents.append(tokenizer.decode(answer.ids[answer.trained].tolist()))
        given.append(tokenizer.decode(thought.ids[thought.trained].tolist()))
    for message in record["messages"]:
        thought = message.get("reasoning_content") if message["role"] == "assistant" else None
        assert message["role"] != "assistant" or message["content"] in "".join(contents)
        assert not thought or (thought in "".join(given)) == (not omitted)
        assert not thought or thought not in "".join(contents)
    if given != [""] * len(given) and name != "gpt-oss":
        assert all(text.rstrip().endswith("</think>") for text in given if text)
    if name == "gpt-oss":
        assert all(text.endswith("<|end|><|start|>assistant<|channel|>final<|message|>") for text in given if text)


def test_a_token_of_thought_and_answer_is_trained_as_the_answer(shared_data):
    """As where a tokenizer joins the space before a word with it."""
    tokenizer = Tokenizer(shared_data / "tokenizer_llama2_hf")
    record = {"instruction": "a", "output": "<think>why</think> because"}
    answer, thought = (tokenize(record, "alpaca", tokenizer, True, part) for part in ("answers", "thoughts"))
    assert tokenizer.token_string(int(answer.ids[answer.trained][0])) == "\u2581because"
    assert tokenizer.decode(thought.ids[thought.trained].tolist()) == "<think>why</think>"
    assert tokenizer.decode(answer.ids[answer.trained].tolist()) == "because"


VARIABLES = {"qwen3": {"enable_thinking": False}, "glm4.5": {"enable_thinking": False}, "smollm3": {"enable_thinking": False}}


@pytest.mark.parametrize("chat", THOUGHT_CHATS)
def test_a_prompt_that_asks_for_no_thought_gets_none_and_counts_it(template, chat):
    name, tokenizer, reference = template
    if name not in VARIABLES and name != "deepseek-v3.1":
        pytest.skip("its prompts always allow a thought")
    variables = VARIABLES.get(name, {})
    bare = [{k: v for k, v in message.items() if k != "reasoning_content"} for message in THOUGHT_CHATS[chat]]
    record = {"messages": THOUGHT_CHATS[chat], "chat_template_kwargs": variables}
    tokens = {**variables, **tokenizer.special_tokens}
    found = documents(prompt_style("chat_template", tokenizer), record["messages"], tokens, "all")
    assert trained_answers(name, found) == answers_of(name, reference, bare, **variables)
    thoughts = [message for message in record["messages"] if "reasoning_content" in message]
    assert unrendered_fields(record, "chat_template", tokenizer) == ["thought"] * len(thoughts)
    kept = drop_long([tokenize(record, "chat_template", tokenizer, True, "thoughts")], 10**6)
    assert not kept.examples


def test_a_prompt_with_a_thought_is_asked_for_by_a_variable(template):
    name, tokenizer, reference = template
    if name != "deepseek-v3.1":
        pytest.skip("has no such variable")
    tokens = {"thinking": True, **tokenizer.special_tokens}
    messages = THOUGHT_CHATS["two thoughts"]
    found = trained_answers(name, documents(prompt_style("chat_template", tokenizer), messages, tokens, "all"))
    theirs = [
        reference.apply_chat_template(messages[:n], tokenize=False, add_generation_prompt=True, thinking=True) for n in (1, 3)
    ]
    assert [asked for asked, _ in found] == theirs
    assert [answer for _, answer in found] == ["four</think>It is 4.</s>", "Twice 4.</think>It is 8.</s>"]


@pytest.mark.parametrize("style", ["alpaca", "chatml", "none"])
def test_a_style_of_the_table_renders_a_thought_between_tags(style, checkpoint):
    tokenizer = Tokenizer(checkpoint)
    fields, tags = ([in_shape(m, shape) for m in THOUGHT_CHATS["two thoughts"]] for shape in ("thinking", "tags"))
    assert STYLES[style].render(fields, False, {}) == STYLES[style].render(tags, False, {})
    assert answer_text({"messages": fields}, style, tokenizer) == "<think>\nTwice 4.\n</think>\n\nIt is 8."
    (every,) = tokenize({"messages": fields}, style, tokenizer, True).documents
    (thoughts,) = tokenize({"messages": fields}, style, tokenizer, True, "thoughts").documents
    told = tokenizer.decode(thoughts.ids[thoughts.trained].tolist())
    assert told == "<think>\nfour\n</think>\n\n<think>\nTwice 4.\n</think>\n\n"
    assert thoughts.n_labels < every.n_labels


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"content": "b", "reasoning": 3}, "the 'reasoning' of a turn must be a string"),
        ({"content": "b", "reasoning": "x", "thinking": "y"}, "two different thoughts"),
        ({"content": "<think>x</think>b", "thinking": "y"}, "two different thoughts"),
        ({"content": "<think>x</think>b", "thinking": "x "}, None),
        ({"content": "b", "reasoning_content": "x", "reasoning": "x"}, None),
        ({"content": "write </think> at the end", "reasoning": "x"}, None),
    ],
)
def test_two_thoughts_of_one_answer_are_refused(answer, message):
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", **answer}]}
    if message is None:
        return check_record(record)
    with pytest.raises(ValueError, match=message):
        check_record(record)


def test_documents_that_are_too_long_or_untrained_are_dropped_alone(template):
    _, tokenizer, _ = template
    messages = [{**m, "weight": 0} if i == 1 else m for i, m in enumerate(THOUGHT_CHATS["two thoughts"])]
    whole, rest = (
        tokenize({"messages": m}, "chat_template", tokenizer, True) for m in (THOUGHT_CHATS["two thoughts"], messages)
    )
    if not isinstance(whole, Rewritten):
        pytest.skip("trains the conversation in one document")
    first, last = whole.documents
    assert drop_long([whole], len(last)) == (list(whole.documents), 0, 1, 2)
    assert drop_long([whole], len(last) - 1) == ([first], 1, 1, 2)
    kept = drop_long([rest], len(last))
    assert (kept.n_dropped, kept.n_documents) == (0, 1)
    assert kept.examples[0].ids.tolist() == last.ids.tolist()
