"""`{% generation %}` in chat templates: what it encloses is trained, as transformers' `return_assistant_tokens_mask`."""

import pytest
from thought_templates import THOUGHT_CHATS, THOUGHT_TEMPLATES
from tiny import make_tokenizer
from transformers import AutoTokenizer

from lit_llm.data.examples import tokenize, unrendered_fields
from lit_llm.text.tokenizer import Tokenizer

_TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<assistant>ANSWER{% else %}<{{ m.role }}>"
    "{{ m.content }}|{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
_THOUGHT = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
ANSWERS = {
    "all": _THOUGHT.join(["{% generation %}", "{{ m.content }}|{% endgeneration %}"]),
    "no thought": f"{_THOUGHT}{{% generation %}}{{{{ m.content }}}}|{{% endgeneration %}}",
    "no end": f"{{% generation %}}{_THOUGHT}{{{{ m.content }}}}{{% endgeneration %}}|",
    "one": "{% if '4' in m.content %}{% generation %}{{ m.content }}|{% endgeneration %}{% else %}{{ m.content }}|{% endif %}",
}


def masks(folder, template, messages, **kwargs):
    """Trained tokens of ours and of transformers, and the names of what is not trained."""
    make_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(template)
    tokenizer, reference = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    theirs = reference.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    record = {"messages": messages}
    example = tokenize(record, "chat_template", tokenizer, True, **kwargs)
    ours = [(d.ids.tolist(), d.trained.long().tolist()) for d in example.documents]
    return (
        tokenizer,
        ours,
        (theirs["input_ids"], theirs["assistant_masks"]),
        unrendered_fields(record, "chat_template", tokenizer),
    )


@pytest.mark.parametrize("chat", THOUGHT_CHATS)
@pytest.mark.parametrize("name", ["all", "no thought"])
def test_the_mask_is_that_of_transformers(tmp_path, name, chat):
    _, ours, theirs, excluded = masks(tmp_path, _TURNS.replace("ANSWER", ANSWERS[name]), THOUGHT_CHATS[chat])
    assert ours == [theirs]
    assert sum(theirs[1])
    n_thoughts = sum("reasoning_content" in message for message in THOUGHT_CHATS[chat])
    assert excluded == ["marks"] * (n_thoughts if name == "no thought" else 0)


@pytest.mark.parametrize("chat", THOUGHT_CHATS)
def test_the_end_of_a_marked_turn_is_trained(tmp_path, chat):
    """Otherwise a model would not learn to stop."""
    tokenizer, ((ids, trained),), theirs, _ = masks(tmp_path, _TURNS.replace("ANSWER", ANSWERS["no end"]), THOUGHT_CHATS[chat])
    assert ids == theirs[0]
    more = [i for i, (a, b) in enumerate(zip(trained, theirs[1], strict=True)) if a != b]
    assert [tokenizer.decode([ids[i]]) for i in more] == ["|"] * sum(m["role"] == "assistant" for m in THOUGHT_CHATS[chat])
    assert all(trained[i] for i in more)


def test_an_answer_without_a_mark_is_not_trained(tmp_path):
    _, ours, theirs, excluded = masks(tmp_path, _TURNS.replace("ANSWER", ANSWERS["one"]), THOUGHT_CHATS["no thoughts"])
    assert ours == [theirs]
    assert excluded == ["marks"]


@pytest.mark.parametrize("chat", THOUGHT_CHATS)
def test_a_header_within_a_mark_is_not_trained(tmp_path, chat):
    """A prompt ends with it: a model never generates it."""
    messages = [dict(m) for m in THOUGHT_CHATS[chat]]
    for message in messages:
        if thought := message.pop("reasoning_content", None):
            message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
    tokenizer, ((ids, trained),), (their_ids, their_mask), excluded = masks(tmp_path, THOUGHT_TEMPLATES["smollm3"], messages)
    assert ids[1:] == their_ids[: len(ids) - 1]  # BOS, and the line break after the last turn
    ours, theirs = (
        tokenizer.decode([i for i, t in zip(some, mask, strict=False) if t])
        for some, mask in ((ids, trained), (their_ids, their_mask))
    )
    assert ours == theirs.replace("<|im_start|>assistant\n", "").replace("<|im_end|>\n", "<|im_end|>")
    assert not excluded


def test_answers_and_thoughts_are_parts_of_the_marks(tmp_path):
    template = _TURNS.replace("ANSWER", ANSWERS["no thought"])
    *_, ((ids, every),), _, _ = masks(tmp_path, template, THOUGHT_CHATS["thought"])
    *_, ((_, answers),), _, _ = masks(tmp_path, template, THOUGHT_CHATS["thought"], train_on="answers")
    *_, ((_, thoughts),), _, _ = masks(tmp_path, template, THOUGHT_CHATS["thought"], train_on="thoughts")
    assert answers == every
    assert not any(thoughts)
    assert len(ids) == len(every)
