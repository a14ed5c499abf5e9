"""Variables of the chat template: of the flag, of the finetuning, of a record or a request."""

import json

import pytest
from thought_templates import THOUGHT_CHATS, THOUGHT_TEMPLATES
from tiny import make_checkpoint

from lit_llm.checkpoint.export import export_peft
from lit_llm.checkpoint.load import load
from lit_llm.checkpoint.peft_adapters import about_peft
from lit_llm.data.examples import tokenize
from lit_llm.serving.chat_prompt import chat_prompt
from lit_llm.text.conversation import prompt_ids, set_template_kwargs
from lit_llm.text.tokenizer import Tokenizer

OFF, ON = {"enable_thinking": False}, {"enable_thinking": True}
QUESTION = THOUGHT_CHATS["thought"][:1]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = make_checkpoint(tmp_path_factory.mktemp("base"), max_position_embeddings=1024)
    (folder / "chat_template.jinja").write_text(THOUGHT_TEMPLATES["qwen3"])
    return folder


def test_a_record_and_a_request_are_preferred(base):
    plain, off = Tokenizer(base), Tokenizer(base)
    set_template_kwargs(off, OFF, "chat_template")
    expected = {name: prompt_ids("chat_template", plain, QUESTION, variables=v) for name, v in (("on", ON), ("off", OFF))}
    assert expected["off"] != expected["on"] == prompt_ids("chat_template", plain, QUESTION)
    assert prompt_ids("chat_template", off, QUESTION) == expected["off"]
    assert prompt_ids("chat_template", off, QUESTION, variables=ON) == expected["on"]
    served = {"finetuned": False, "opens": True, "continues": False, "longest": 1000}
    for variables, kind in (({}, "off"), (ON, "on")):
        assert chat_prompt("chat_template", off, QUESTION, variables=variables, **served) == expected[kind]
    record = {"messages": THOUGHT_CHATS["thought"]}
    for one, other in (({**record, "chat_template_kwargs": ON}, record), (record, {**record, "chat_template_kwargs": OFF})):
        ids = [tokenize(r, "chat_template", t, True).ids.tolist() for r, t in ((one, off), (other, plain))]
        assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("kwargs", "style", "message"),
    [
        ({"enable_thinkin": False}, "chat_template", "the chat template does not read 'enable_thinkin'"),
        (OFF, "alpaca", "are for the checkpoint's chat template; the prompt style is alpaca"),
        (OFF, None, "the prompt style is None"),
    ],
)
def test_variables_that_cannot_act_are_refused(base, kwargs, style, message):
    with pytest.raises(ValueError, match=message):
        set_template_kwargs(Tokenizer(base), kwargs, style)


def test_a_finetuned_model_is_asked_as_it_was_trained(base, tmp_path, script):
    records = [{"messages": THOUGHT_CHATS[name]} for name in ("thought", "no thought")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    flags = ["--checkpoint_dir", base, "--data_dir", "rows.jsonl", "--template_kwargs", json.dumps(OFF)]
    shown = script("scripts/inspect_data.py", *flags)
    assert "<think>\n\n</think>\n\n⟦It is 4.<|im_end|>⟧" in shown.stdout
    assert "1 thoughts are not trained: the prompt style asks for answers without" in shown.stderr
    done = script("finetune/lora.py", *flags, "--train.max_steps=1", "--eval.samples=0", "--out_dir=out")
    assert "1 thoughts are not trained" in done.stderr
    final = tmp_path / "out" / "final"
    assert json.loads((final / "adapter.json").read_text())["template_kwargs"] == OFF
    _, tokenizer = load(base, final)
    assert tokenizer.template_kwargs == OFF
    script("generate/lora.py", "--adapter_dir", final, "--prompt=a", "--max_new_tokens=2", "--template_kwargs", json.dumps(ON))
    wrong = script("generate/lora.py", "--adapter_dir", final, "--prompt=a", '--template_kwargs={"x1": 1}', check=False)
    assert "error: --template_kwargs: the chat template does not read 'x1'" in wrong.stderr
    more = ["--init_from", final, "--checkpoint_dir", base, "--data_dir", "rows.jsonl", "--train.max_steps=1", "--out_dir=more"]
    script("finetune/lora.py", *more, "--eval.samples=0")
    assert json.loads((tmp_path / "more" / "final" / "adapter.json").read_text())["template_kwargs"] == OFF
    export_peft(base, final, tmp_path / "peft")
    about = about_peft(tmp_path / "peft")
    assert (about["prompt_style"], about["template_kwargs"]) == ("chat_template", OFF)
    script("scripts/merge_lora.py", "--checkpoint_dir", base, "--adapter_dir", final, "--output_dir=merged")
    assert json.loads((tmp_path / "merged" / "finetuned.json").read_text())["template_kwargs"] == OFF
    assert load(tmp_path / "merged")[1].template_kwargs == OFF
