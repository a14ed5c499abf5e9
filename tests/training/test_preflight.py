"""What a run tells and refuses before it loads weights."""

import json
import re

import pytest
import torch
from tiny import make_data, rows

from lit_llm.checkpoint.load_model import load_model
from lit_llm.data.batches import StepPlan
from lit_llm.data.examples import Example, Kept, tokenize
from lit_llm.text.chat_template import ChatTemplate
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.training.plan import flops_per_token
from lit_llm.training.preflight import Records, compare, first_epoch, inspect, load_examples, show


def plan_of(examples, packing=True):
    return StepPlan([len(e) for e in examples], 4, 2, max(map(len, examples)), packing, 0)


def inspected(examples, tokenizer, val_examples=(), style="alpaca", **options):
    plan = plan_of(examples, **options)
    return inspect(examples, val_examples, Kept([], 0), style, tokenizer, plan, first_epoch(plan))


@pytest.fixture
def tokenizer(checkpoint):
    return Tokenizer(checkpoint)


def examples_of(records, tokenizer, style="alpaca"):
    return [tokenize(record, style, tokenizer, True) for record in records]


def test_counts_are_those_of_the_data(tokenizer):
    examples = examples_of([*rows(9), rows(9)[0]], tokenizer)
    found = inspected(examples, tokenizer, examples_of([rows(9)[3], *rows(2, seed=7)], tokenizer))
    assert (found.n_examples, found.n_duplicates, found.n_leaks) == (len(examples), 1, 1)
    assert found.n_tokens == sum(len(e.ids) for e in examples)
    assert found.n_trained == sum(int(e.trained.sum()) for e in examples)
    assert found.n_bos == found.n_eos == found.n_documents == len(examples)
    assert 0 < found.packing_efficiency <= 1
    found.check()


def test_efficiency_of_equal_lengths_is_one(tokenizer):
    examples = [Example(torch.arange(5).int(), torch.ones(5, dtype=torch.bool))] * 8
    assert inspected(examples, tokenizer).packing_efficiency == 1
    assert inspected(examples, tokenizer, packing=False).packing_efficiency == 1


@pytest.mark.parametrize("n_spoiled", [1, 4])
@pytest.mark.parametrize("fault", ["nothing", "two BOS", "two EOS", "EOS, nor"])
def test_a_run_that_would_train_wrongly_is_refused(tokenizer, fault, n_spoiled):
    examples = examples_of(rows(4), tokenizer)
    bos = torch.tensor([tokenizer.bos_id], dtype=torch.int32)
    spoil = {
        "nothing": lambda e: Example(e.ids, torch.zeros_like(e.trained)),
        "two BOS": lambda e: Example(torch.cat([bos, e.ids]), torch.cat([torch.tensor([False]), e.trained])),
        "two EOS": lambda e: Example(torch.cat([e.ids, e.ids[-1:]]), torch.cat([e.trained, e.trained[-1:]])),
        "EOS, nor": lambda e: Example(e.ids[:-1], e.trained[:-1]),
    }[fault]
    examples = [spoil(e) if i < n_spoiled else e for i, e in enumerate(examples)]
    found = inspected(examples, tokenizer)
    if fault == "nothing" and n_spoiled == 1:  # one that trains nothing is dropped and counted before
        return found.check()
    with pytest.raises(ValueError, match=fault):
        found.check()


def test_texts_may_go_on_without_eos(tokenizer):
    examples = examples_of([{"text": "the cat", "continues": True}, {"text": "sees"}], tokenizer, "none")
    found = inspected(examples, tokenizer, style="none")
    assert (found.n_eos, found.n_open) == (1, 0)
    found.check()


@pytest.mark.parametrize(
    ("text", "told"), [("<s>the cat", "two BOS: the data itself"), ("the cat</s>", "two EOS: the data itself")]
)
def test_a_text_that_brings_its_own_special_tokens_is_told(tokenizer, text, told):
    with pytest.raises(ValueError, match=told):
        inspected(examples_of([{"text": text}], tokenizer, "none"), tokenizer, style="none").check()


@pytest.mark.parametrize("fault", ["truncated", "inside a token"])
def test_tokens_that_are_not_those_of_the_records_are_refused(tokenizer, fault):
    """An answer that was cut and then ended, and a prompt tokenized together with its answer."""
    record = {"instruction": "the cat", "output": "house river tree"}
    (example,) = examples_of([record], tokenizer)
    compare(iter([record]), [example], "alpaca", tokenizer)
    start = int(example.trained.nonzero()[0])
    if fault == "truncated":
        spoiled = Example(
            torch.cat([example.ids[:-3], example.ids[-1:]]), torch.cat([example.trained[:-3], example.trained[-1:]])
        )
    else:  # one token makes up the last of the prompt and the first of the answer
        spoiled = Example(torch.cat([example.ids[: start - 1], example.ids[start:]]), example.trained[1:])
    with pytest.raises(ValueError, match=f"record 1: .*{fault}"):
        compare(iter([record]), [spoiled], "alpaca", tokenizer)


def test_a_template_that_omits_part_of_the_answer_is_refused(tokenizer):
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content.split('::')[-1] }}|{% endfor %}"
    style = ChatTemplate(source + "{% if add_generation_prompt %}<assistant>{% endif %}")
    whole, cut = ({"instruction": "a", "output": text} for text in ("b", "why::b"))
    assert tokenizer.decode(tokenize(whole, style, tokenizer, True).ids.tolist()).endswith("b|")
    with pytest.raises(ValueError, match="omits a part of the answer"):
        tokenize(cut, style, tokenizer, True)


def test_an_example_shows_what_is_trained(tokenizer):
    record = {"instruction": "the cat", "output": "a dog"}
    (example,) = examples_of([record], tokenizer)
    text = show(example, tokenizer, colour=False)
    assert text.startswith("<s>")
    assert text.endswith("⟦a dog</s>⟧")
    assert show(example, tokenizer, colour=True).endswith("\033[32ma dog</s>\033[0m")


def test_spaces_stand_where_they_are_trained(shared_data):
    """Decoded alone, a part of a text would lose the space that it begins with."""
    tokenizer = Tokenizer(shared_data / "stories260K")
    (example,) = examples_of([{"instruction": "a", "output": "b c"}], tokenizer, "vicuna")
    assert "ASSISTANT:⟦ b c" in show(example, tokenizer, colour=False)


def test_a_dry_run_stops_before_the_weights(tmp_path, checkpoint, script):
    data_dir = make_data(tmp_path / "data")
    empty = tmp_path / "no_weights"
    empty.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (empty / name).write_bytes((checkpoint / name).read_bytes())
    out_dir = tmp_path / "out"
    done = script(
        "finetune/lora.py", f"--checkpoint_dir={empty}", f"--data_dir={data_dir}", f"--out_dir={out_dir}", "--dry_run"
    )
    assert "examples        20 of 20" in done.stdout
    assert "</s>⟧" in done.stdout
    assert "steps           1, 1 epochs of 1" in done.stdout
    assert f"output          {out_dir}: a new folder" in done.stdout
    assert re.search(r"lora +2,048 +0  float32", done.stdout)  # in 2 layers, q and v: 8 x (32 + 32)
    assert not out_dir.exists()
    first = json.loads((data_dir / "train.jsonl").read_text().splitlines()[0])
    assert first["output"] in done.stdout


def test_a_dry_run_plans_for_a_folder_that_exists(tmp_path, checkpoint, data_dir, script):
    """Quantized and in parts of an epoch: nothing is written."""
    flags = [f"--checkpoint_dir={checkpoint}", f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'out'}", "--train.max_steps=3"]
    flags.append("--train.global_batch_size=16")
    script("finetune/lora.py", *flags)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    told = script("finetune/lora.py", *flags, "--dry_run", "--quantize=bnb.nf4").stdout
    assert f"output          {tmp_path / 'out'}: a finished run" in told
    assert "steps           3, 1.5 epochs of 2" in told
    assert re.search(r"attention +0 +[\d,]+  nf4", told)
    assert re.search(r"memory          estimate in GB: weights .*, total", told)
    assert re.search(r"time            a step takes .* s or more, the run 0:00:", told)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


@pytest.mark.parametrize(("recomputes", "factor"), [(False, 4), (True, 6)])
def test_operations_are_four_for_each_frozen_weight(recomputes, factor, checkpoint):
    """Of the products forward and for the gradient of the input; two more for what trains."""
    model = load_model(checkpoint)
    n = sum(p.numel() for p in model.h.parameters() if p.dim() == 2)
    assert flops_per_token(model, recomputes) == factor * n
    assert flops_per_token(model.requires_grad_(), recomputes) == (factor + 2) * n


@pytest.mark.parametrize("name", ["tokenizer_llama2_hf", "tokenizer_mistral_hf", "stories260K", "byte-level"])
@pytest.mark.parametrize("closing", [" END OF TURN\n", "  <end>  \n\n", "\n### \n", "</s>\n"])
def test_an_answer_closed_by_plain_text_has_an_end(shared_data, checkpoint, name, closing):
    tokenizer = Tokenizer(checkpoint if name == "byte-level" else shared_data / name)
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}CLOSE{% endfor %}"
    tokenizer.chat_template = source.replace("CLOSE", closing) + "{% if add_generation_prompt %}assistant: {% endif %}"
    records = [{"instruction": "2+2?", "output": text} for text in ("four", " a  b ", "4 END OF")]
    examples = examples_of(records, tokenizer, "chat_template")
    found = inspected(examples, tokenizer, style="chat_template")
    assert (found.n_eos, found.n_closed, found.n_open) == ((3, 0, 0) if "</s>" in closing else (0, 3, 0))
    found.check()


def test_pairs_that_teach_nothing_are_counted_and_alone_refused(tokenizer):
    same = [{"prompt": f"q{i}", "chosen": "a", "rejected": "a"} for i in range(3)]
    equal = examples_of(same, tokenizer)
    with pytest.raises(ValueError, match="in every pair the chosen and the rejected answer are the same"):
        inspected(equal, tokenizer).check()
    mixed = inspected([*equal, *examples_of([{**same[0], "rejected": "b"}], tokenizer)], tokenizer)
    assert mixed.n_equal == 3
    assert "3 with the same answer twice" in mixed.text()
    mixed.check()


def test_ignored_and_unrendered_fields_are_reported(tokenizer, tmp_path, capsys):
    turns = [{"role": "user", "content": "a", "id": 7}, {"role": "assistant", "content": "b", "id": 8}]
    lines = [{"messages": turns, "source": "x"}, {"instruction": "c", "output": "d", "source": "y", "score": 0.5}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    load_examples(Records(tmp_path / "train.jsonl"), "alpaca", tokenizer, True, "all", 200)
    told = capsys.readouterr().err
    assert "ignored fields: 'source' (2 records), 'score' (1 records)" in told
    assert "ignored fields: 'id' (2 turns)" in told
