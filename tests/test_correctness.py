"""tutorials/correctness.md, held against the tests; and its bugs that concern no other file of tests."""

import ast
import csv
import json
import re

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file
from tiny import hf_model, make_tokenizer

from lit_llm.args.finetune import EvalArgs, LoRAFinetuneArgs, TrainArgs
from lit_llm.checkpoint.adapters import attach_adapter
from lit_llm.checkpoint.load_model import load_model
from lit_llm.data.examples import tokenize
from lit_llm.methods.lora import LoRA, merge
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.training.finetune import finetune
from lit_llm.training.schedule import Schedule


def test_every_named_test_exists_and_every_bug_has_one():
    text = (REPOSITORY / "tutorials" / "correctness.md").read_text()
    rows = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 25))
    for number, cell in rows:
        named = re.findall(r"`(tests/(?:\w+/)?test_\w+\.py)::(test_\w+)`", cell)
        assert named, f"bug {number} has no test"
        for path, name in named:
            tree = ast.parse((REPOSITORY / path).read_text())
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


def test_eos_is_trained_where_it_is_also_the_padding_token(tmp_path):
    make_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": config["eos_token"]}))
    tokenizer = Tokenizer(tmp_path)
    example = tokenize({"instruction": "the red cat", "output": "sees a dog"}, "alpaca", tokenizer, mask_prompt=True)
    assert example.ids[-1] == tokenizer.eos_id
    assert example.trained[-1]


@pytest.fixture
def run(tmp_path, checkpoint, data_dir):
    """LoRA on 20 examples in steps of 4. Returns the run folder."""

    def go(name, seed=1337, **train):
        args = LoRAFinetuneArgs(
            checkpoint_dir=checkpoint, data_dir=data_dir, out_dir=tmp_path / name, accelerator="cpu", seed=seed,
            train=TrainArgs(global_batch_size=4, probe=False, **train), eval=EvalArgs(interval=None, final=False, samples=0),
        )  # fmt: skip
        finetune(args, LoRA())
        return tmp_path / name

    return go


def test_the_schedule_counts_optimizer_steps(run):
    """Whatever the number of micro-batches of a step, its learning rate is that of the formula at its number."""
    expected = Schedule(learning_rate=0.1, min_lr=0.01, warmup_steps=2, total_steps=10, max_seconds=float("inf"))
    for size in (1, 4):
        out_dir = run(f"of {size}", epochs=2, micro_batch_size=size, packing=False, learning_rate=0.1, lr_warmup_steps=2)
        with (out_dir / "metrics.csv").open() as file:
            rates = [float(row["learning_rate"]) for row in csv.DictReader(file) if row["learning_rate"]]
        assert rates == pytest.approx([expected.at(step, 0) for step in range(10)], rel=1e-6)


def test_the_seed_decides_how_an_adapter_starts(run):
    """A is as it was drawn: the one step has a learning rate below what float32 can add."""
    starts = {}
    for name, seed, other in (("a", 1, 5), ("b", 1, 6), ("c", 2, 5)):
        torch.manual_seed(other)  # what a program drew before does not matter
        out_dir = run(name, seed=seed, max_steps=1, learning_rate=1e-30)
        starts[name] = load_file(out_dir / "final" / "adapter.safetensors")["h.0.attn.q.lora.A"]
    assert torch.equal(starts["a"], starts["b"])
    assert not torch.equal(starts["a"], starts["c"])


def test_an_adapter_whose_tensors_have_other_names_is_refused(run, checkpoint):
    folder = run("renamed", max_steps=1) / "final"
    tensors = load_file(folder / "adapter.safetensors")
    save_file({f"base_model.{name}": tensor for name, tensor in tensors.items()}, folder / "adapter.safetensors")
    with pytest.raises(ValueError, match=r"does not fit adapter\.json"):
        attach_adapter(load_model(checkpoint), folder)


def test_merging_into_a_quantized_weight_is_refused(checkpoint):
    model = load_model(checkpoint, quantize="bnb.nf4")
    LoRA().attach(model)
    with pytest.raises(ValueError, match=r"is quantized\. Load the base without `quantize`"):
        merge(model)


@pytest.mark.parametrize("case", ["llama", "gpt_neox", "mistral", "gemma2", "gpt2", "mixtral"])
def test_no_token_sees_what_comes_after_it(tmp_path, case):
    """Other tokens from position 9 on leave the logits before it as they were, and change those at it."""
    changes = {"num_key_value_heads": 2, "sliding_window": 16} if case in ("mistral", "mixtral", "gemma2") else {}
    hf_model(case, **changes).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    ids = torch.arange(3, 27)[None]
    changed = ids.clone()
    changed[0, 9:] += 100
    with torch.no_grad():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(after[0, :9], before[0, :9], rtol=1e-5, atol=1e-5)
    assert (after[0, 9] - before[0, 9]).abs().max() > 1e-2
