"""Conversations as clients send them, against transformers' rendering of a checkpoint that nobody finetuned."""

import json

import jinja2
import pytest
from serving import serving
from tiny import make_checkpoint
from transformers import AutoTokenizer

pytest.importorskip("fastapi")

from test_openai_routes import send

import lit_llm
from lit_llm.args.serve import ServeArgs
from lit_llm.serving.app import make_app
from lit_llm.text.conversation import prompt_ids

PLAIN = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if thinking %} hm{% endif %}{% endif %}"
)
STRICT = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('order') }}{% endif %}"
    "{{ m.role[0] }}: {{ m.content | trim }}\n{% endfor %}"
)
USER, ANSWER, SYSTEM = ({"role": role, "content": f"a {role}"} for role in ("user", "assistant", "system"))
EMPTY = {"role": "assistant", "content": ""}
TURNS = {
    "empty answer": [USER, EMPTY, USER],
    "system only": [SYSTEM],
    "late system": [USER, ANSWER, SYSTEM, USER],
    "system last": [USER, SYSTEM],
    "assistant first": [ANSWER, USER],
    "assistant last": [USER, ANSWER],
    "two users": [USER, USER],
    "empty user": [{"role": "user", "content": ""}],
}


class Recorded:
    """A server that keeps the prompts of its jobs."""

    def __init__(self, folder, style=None, finetuned=False):
        self.reference, (model, self.tokenizer) = AutoTokenizer.from_pretrained(folder), lit_llm.load(folder, device="cpu")
        self.app = make_app(model, self.tokenizer, ServeArgs(), name="demo", style=style, finetuned=finetuned)
        self.prompts, engine = [], self.app.state.engine
        submit = engine.submit

        def recorded(jobs, *arguments):
            self.prompts += [job.prompt for job in jobs]
            return submit(jobs, *arguments)

        engine.submit = recorded

    def asked(self, messages, **fields):
        """Return status, answer, and the prompt that the model was given."""
        body = {"model": "demo", "messages": messages, "max_tokens": 2, "temperature": 0, **fields}
        self.prompts.clear()
        status, answer = send(self.url, json.dumps(body).encode(), "/v1/chat/completions")
        return status, answer, self.prompts[0] if self.prompts else None

    def rendered(self, messages, **options):
        options = {"add_generation_prompt": True} | options
        return [self.tokenizer.bos_id, *self.reference.apply_chat_template(messages, return_dict=False, **options)]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    def server(template, **options):
        folder = make_checkpoint(tmp_path_factory.mktemp("turns") / "m")
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return Recorded(folder, **options)

    return server


@pytest.fixture(scope="module")
def plain(make):
    server = make(PLAIN)
    with serving(server.app) as server.url:
        yield server


@pytest.fixture(scope="module")
def strict(make):
    server = make(STRICT)
    with serving(server.app) as server.url:
        yield server


@pytest.mark.parametrize("name", TURNS)
def test_turns_are_rendered_as_in_transformers(plain, name):
    status, answer, prompt = plain.asked(TURNS[name])
    assert status == 200, answer
    assert prompt == plain.rendered(TURNS[name])


def test_an_answer_without_content_is_empty(plain):
    for turn in ({"role": "assistant"}, {"role": "assistant", "content": None, "tool_calls": None, "refusal": None}):
        assert plain.asked([USER, turn, USER])[2] == plain.rendered([USER, EMPTY, USER])
    assert plain.asked([{"role": "developer", "content": "a system"}, USER])[2] == plain.rendered([SYSTEM, USER])


@pytest.mark.parametrize("text", ["it is", "it is  ", " a", ""])
def test_the_last_turn_is_continued_as_in_transformers(plain, text):
    messages = [USER, {"role": "assistant", "content": text}]
    status, _, prompt = plain.asked(messages, continue_final_message=True, add_generation_prompt=False)
    assert status == 200
    assert prompt == plain.rendered(messages, continue_final_message=True, add_generation_prompt=False)
    assert plain.asked(messages, add_generation_prompt=False)[2] == plain.rendered(messages, add_generation_prompt=False)


def test_variables_reach_the_template(plain):
    assert plain.asked([USER], chat_template_kwargs={"thinking": True})[2] == plain.rendered([USER], thinking=True)
    assert plain.asked([USER], chat_template_kwargs={"thinking": False})[2] == plain.rendered([USER])
    assert plain.asked([USER], chat_template_kwargs={"eos_token": "no"})[2] == plain.rendered([USER])


REGULAR = {
    "empty answer": [USER, EMPTY, USER],
    "system only": [SYSTEM, {"role": "user", "content": ""}],
    "late system": [USER, ANSWER, {"role": "user", "content": "a system\n\na user"}],
    "system last": [{"role": "user", "content": "a user\n\na system"}],
    "assistant first": [{"role": "user", "content": ""}, ANSWER, USER],
    "assistant last": [USER, ANSWER],
    "two users": [{"role": "user", "content": "a user\n\na user"}],
    "empty user": [{"role": "user", "content": ""}],
}


@pytest.mark.parametrize("name", REGULAR)
def test_a_strict_template_gets_turns_that_alternate(strict, name):
    status, answer, prompt = strict.asked(TURNS[name])
    assert status == 200, answer
    try:
        expected = strict.rendered(TURNS[name])
    except jinja2.TemplateError:
        expected = strict.rendered(REGULAR[name])
    assert prompt == expected


@pytest.mark.parametrize("style", ["alpaca", "chatml", "llama2"])
def test_styles_of_the_table_render_every_order(make, style):
    server = make(None, style=style)
    with serving(server.app) as server.url:
        for name, turns in TURNS.items():
            status, answer, prompt = server.asked(turns)
            assert status == 200, (name, answer)
            expected = REGULAR[name] + ([{"role": "user", "content": ""}] if name == "assistant last" else [])
            assert prompt == prompt_ids(style, server.tokenizer, expected)
        more = server.asked([USER, ANSWER], continue_final_message=True)[2]
        assert server.tokenizer.decode_visibly(more).endswith("a assistant")
        assert more[: len(server.asked([USER])[2])] == server.asked([USER])[2]


def test_a_finetuned_model_gets_the_history_of_its_training(make):
    server = make(PLAIN, style="chat_template", finetuned=True)
    with serving(server.app) as server.url:
        prompt = server.asked([USER, ANSWER, USER])[2]
    assert prompt == prompt_ids("chat_template", server.tokenizer, [USER, ANSWER, USER], finetuned=True)
    assert prompt.count(server.tokenizer.eos_id) == 1


def test_no_limit_of_vllm_is_no_limit_here(plain):
    expected = plain.asked([USER])[1]["choices"][0]["message"]
    for fields in ({"top_k": 0}, {"top_k": -1}, {"skip_special_tokens": True, "stop_token_ids": [], "cache_prompt": True}):
        assert plain.asked([USER], **fields)[1]["choices"][0]["message"] == expected
    assert plain.asked([USER], top_k=-2)[0] == 400
