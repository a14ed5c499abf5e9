"""What a run tells and refuses before it loads weights."""

import dataclasses
import json

import pytest
import torch
from tiny import make_data, rows

from lit_llm.data import Example, Plan, tokenize_all
from lit_llm.preflight import inspect, show
from lit_llm.tokenizer import Tokenizer


def plan_of(examples, packing=True):
    return Plan([len(e) for e in examples], 4, 2, max(map(len, examples)), packing, 0)


@pytest.fixture
def tokenizer(checkpoint):
    return Tokenizer(checkpoint)


def test_counts_are_those_of_the_data(tokenizer):
    records = [*rows(9), rows(9)[0]]
    examples, _ = tokenize_all(records, "alpaca", tokenizer, True, 256)
    found = inspect(records, [rows(9)[3], *rows(2, seed=7)], examples, tokenizer, plan_of(examples))
    assert (found.n_examples, found.n_duplicates, found.n_leaks) == (len(examples), 1, 1)
    assert found.n_tokens == sum(len(e.ids) for e in examples)
    assert found.n_trained == sum(int(e.trained.sum()) for e in examples)
    assert found.n_bos == found.n_eos == found.n_documents == len(examples)
    assert 0 < found.packing_efficiency <= 1
    found.check()


def test_efficiency_of_equal_lengths_is_one(tokenizer):
    examples = [Example(torch.arange(5).int(), torch.ones(5, dtype=torch.bool))] * 8
    assert inspect([], [], examples, tokenizer, plan_of(examples)).packing_efficiency == 1
    assert inspect([], [], examples, tokenizer, plan_of(examples, packing=False)).packing_efficiency == 1


@pytest.mark.parametrize("fault", ["nothing", "two BOS", "EOS"])
def test_a_run_that_would_train_wrongly_is_refused(tokenizer, fault):
    examples, _ = tokenize_all(rows(4), "alpaca", tokenizer, True, 256)
    bos = torch.tensor([tokenizer.bos_id], dtype=torch.int32)
    spoil = {
        "nothing": lambda e: Example(e.ids, torch.zeros_like(e.trained)),
        "two BOS": lambda e: Example(torch.cat([bos, e.ids]), torch.cat([torch.tensor([False]), e.trained])),
        "EOS": lambda e: Example(e.ids[:-1], e.trained[:-1]),
    }[fault]
    examples = [spoil(e) for e in examples]
    with pytest.raises(ValueError, match=fault):
        inspect([], [], examples, tokenizer, plan_of(examples)).check()


def test_an_example_shows_what_is_trained(tokenizer):
    record = {"instruction": "the cat", "output": "a dog"}
    (example,), _ = tokenize_all([record], "alpaca", tokenizer, True, 256)
    text = show(example, tokenizer, colour=False)
    assert text.startswith("[BOS]")
    assert text.endswith("«a dog[EOS]»")
    assert show(dataclasses.replace(example), tokenizer, colour=True).endswith("\033[32ma dog[EOS]\033[0m")


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
    assert "[EOS]»" in done.stdout
    assert not out_dir.exists()
    first = json.loads((data_dir / "train.jsonl").read_text().splitlines()[0])
    assert first["output"] in done.stdout
