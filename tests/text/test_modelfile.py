"""Prompt styles in the forms of other programs: Jinja for llama.cpp, Go for Ollama."""

import re

import pytest
from tiny import make_tokenizer

from lit_llm.text.chat_template import ChatTemplate
from lit_llm.text.ending import ending
from lit_llm.text.modelfile import modelfile, pieces_of
from lit_llm.text.style_template import jinja_template
from lit_llm.text.styles import STYLES
from lit_llm.text.tokenizer import Tokenizer

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
USER, ANSWER, MORE = ({"role": r, "content": c} for r, c in (("user", "a {x}\nb"), ("assistant", 'c "d"'), ("user", " e ")))
SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATIONS = [[USER], [SYSTEM, USER], [USER, ANSWER, MORE], [SYSTEM, USER, ANSWER, MORE], [{**SYSTEM, "content": ""}, USER]]


@pytest.mark.parametrize("name", sorted(STYLES))
def test_a_jinja_template_renders_as_its_style(name):
    template = ChatTemplate(jinja_template(STYLES[name], **{key[:3]: value for key, value in TOKENS.items()}))
    for messages in CONVERSATIONS:
        assert template.render(messages, True, TOKENS) == STYLES[name].render(messages, True, TOKENS)


@pytest.mark.parametrize("name", sorted(STYLES))
def test_the_pieces_of_a_style_make_its_conversations(name):
    pieces = pieces_of(STYLES[name], TOKENS)
    for messages in CONVERSATIONS[:4]:
        text = pieces.plain
        if messages[0] == SYSTEM:
            assert pieces.system is not None
            text = SYSTEM["content"].join(pieces.system)
        for message in messages[messages[0] == SYSTEM :]:
            answer = pieces.lead + message["content"] + pieces.answered
            text += answer if message["role"] == "assistant" else message["content"] + pieces.asked
        assert text == STYLES[name].render(messages, True, TOKENS)


def test_a_modelfile_has_template_and_stops(tmp_path):
    make_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    text = modelfile("./model.gguf", "alpaca", tokenizer, ending("alpaca", tokenizer), "./adapter.gguf")
    assert text.startswith("FROM ./model.gguf\nADAPTER ./adapter.gguf\n")
    stops = re.findall('^PARAMETER stop "(.*)"$', text, re.MULTILINE)
    assert stops == ["</s>", "\\n### Instruction:"]
    (template,) = re.findall('TEMPLATE """(.*)"""', text, re.DOTALL)
    assert template.count("{{ if") == template.count("{{ end }}") - 1  # and a range
    assert "### Instruction:\n" in template
