"""Runs that start from an adapter: its values, its arguments, and what contradicts them."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lit_llm.args.finetune import (
    AdapterArgs,
    AdapterFinetuneArgs,
    AdapterV2FinetuneArgs,
    DPOFinetuneArgs,
    EvalArgs,
    FullFinetuneArgs,
    IA3FinetuneArgs,
    LoRAArgs,
    LoRAFinetuneArgs,
    TrainArgs,
)
from lit_llm.checkpoint.adapters import attach_adapter
from lit_llm.checkpoint.load_model import load_model
from lit_llm.errors import OptionError
from lit_llm.methods.dpo import DPO
from lit_llm.methods.lora import switched_off
from lit_llm.training.finetune import finetune
from lit_llm.training.metrics import read_rows

UNMOVED = TrainArgs(max_steps=1, learning_rate=1e-45, min_lr=0.0, weight_decay=0.0, global_batch_size=4)
"""The step is below the resolution of float32, so that every weight keeps its bits."""
EVAL = EvalArgs(samples=0)


def run(kind, checkpoint, data_dir, out_dir, **options):
    options = {"train": TrainArgs(max_steps=2, learning_rate=1e-2, global_batch_size=4), "eval": EVAL, **options}
    return finetune(kind(checkpoint_dir=checkpoint, data_dir=data_dir, out_dir=out_dir, **options))


def about(run):
    return json.loads((run.final / "adapter.json").read_text())


KINDS = {
    "lora": (LoRAFinetuneArgs, {"lora": LoRAArgs(r=3, alpha=5, targets="k_proj,down_proj", use_rslora=True)}),
    "dora": (LoRAFinetuneArgs, {"lora": LoRAArgs(use_dora=True, dropout=0.0)}),
    "adapter": (AdapterFinetuneArgs, {"adapter": AdapterArgs(prompt_length=3, start_layer=1)}),
    "adapter_v2": (AdapterV2FinetuneArgs, {"adapter": AdapterArgs(prompt_length=3, start_layer=1)}),
    "ia3": (IA3FinetuneArgs, {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_run_starts_from_the_values_of_an_adapter(name, checkpoint, data_dir, tmp_path):
    kind, options = KINDS[name]
    first = run(kind, checkpoint, data_dir, tmp_path / "first", **options, prompt_style="vicuna")
    second = run(kind, checkpoint, data_dir, tmp_path / "second", init_from=first.final, train=UNMOVED)
    before, after = (load_file(r.final / "adapter.safetensors") for r in (first, second))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert about(second) == {**about(first), "init_from": str(first.final.resolve())}
    ends = [read_rows(r.metrics) for r in (first, second)]
    assert ends[1][0]["val_loss"] == ends[0][-1]["val_loss"]
    assert f"started from the adapter {first.final}" in (second.folder / "report.html").read_text()


def test_a_finished_run_continues_for_more_epochs_and_resumes(checkpoint, data_dir, tmp_path, script):
    first = run(LoRAFinetuneArgs, checkpoint, data_dir, tmp_path / "first", train=TrainArgs(max_steps=3, learning_rate=1e-2))
    train = TrainArgs(epochs=3, learning_rate=1e-2, global_batch_size=10, save_interval=2)
    whole = run(LoRAFinetuneArgs, checkpoint, data_dir, tmp_path / "whole", init_from=first.final, train=train)
    rows = read_rows(whole.metrics)
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"])
    part = tmp_path / "part"
    (tmp_path / "whole").rename(part)
    expected = load_file(part / "final" / "adapter.safetensors")
    args = LoRAFinetuneArgs(
        checkpoint_dir=checkpoint, data_dir=data_dir, out_dir=part, train=train, eval=EVAL, init_from=first.final,
        resume=str(part / "step-000004"),
    )  # fmt: skip
    resumed = load_file(finetune(args).final / "adapter.safetensors")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_a_run_starts_from_an_adapter_of_peft(checkpoint, data_dir, tmp_path):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, rank_pattern={"v_proj": 2}, target_modules=["q_proj", "v_proj"], modules_to_save=["norm"])
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), config)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0.1)
    theirs.save_pretrained(tmp_path / "peft")
    start = {"init_from": tmp_path / "peft", "lora": LoRAArgs(dropout=0.3)}
    first = run(LoRAFinetuneArgs, checkpoint, data_dir, tmp_path / "first", **start, train=UNMOVED)
    ours = load_model(checkpoint)
    attach_adapter(ours, first.final)
    ids = torch.randint(300, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(ids), theirs.eval()(ids).logits, rtol=1e-5, atol=1e-5)
    arguments = about(first)["arguments"]
    assert (arguments["dropout"], arguments["ranks"], arguments["modules_to_save"]) == (
        0.3, {f"h.{i}.attn.v": 2 for i in range(2)}, [f"h.{i}.norm_{j}" for i in range(2) for j in (1, 2)] + ["norm"],
    )  # fmt: skip
    moved = run(LoRAFinetuneArgs, checkpoint, data_dir, tmp_path / "second", **start)
    changed = load_file(moved.final / "adapter.safetensors")
    assert all(not torch.equal(changed[name], ours.get_parameter(name)) for name in ("norm.weight", "h.1.attn.v.lora.A"))


@pytest.fixture(scope="module")
def trained(checkpoint, data_dir, tmp_path_factory):
    """Runs of LoRA and LLaMA-Adapter."""
    folder = tmp_path_factory.mktemp("trained")
    adapter = {"adapter": AdapterArgs(start_layer=0)}
    return {
        "lora": run(LoRAFinetuneArgs, checkpoint, data_dir, folder / "lora", lora=LoRAArgs(r=4, targets="k,up")),
        "adapter": run(AdapterFinetuneArgs, checkpoint, data_dir, folder / "adapter", **adapter),
    }


CONTRADICTIONS = {
    "rank": (LoRAFinetuneArgs, "lora", {"lora": LoRAArgs(r=16)}, "`lora.r` 16 contradicts .*, which has 4. Omit it"),
    "targets": (LoRAFinetuneArgs, "lora", {"lora": LoRAArgs(targets="up_proj")}, "`lora.targets` up contra.* which has k,up"),
    "DoRA": (LoRAFinetuneArgs, "lora", {"lora": LoRAArgs(use_dora=True)}, "`lora.use_dora` True contradicts"),
    "method": (LoRAFinetuneArgs, "adapter", {}, "is an adapter of adapter. Use finetune/adapter.py, or one of lora"),
    "prompts": (AdapterFinetuneArgs, "adapter", {"adapter": AdapterArgs(prompt_length=3)}, "`adapter.prompt_length` 3 con"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_options_that_contradict_the_adapter_are_refused(name, checkpoint, data_dir, trained, tmp_path):
    kind, start, options, message = CONTRADICTIONS[name]
    with pytest.raises(OptionError, match=message):
        run(kind, checkpoint, data_dir, tmp_path / "out", init_from=trained[start].final, **options)
    assert not (tmp_path / "out").exists()


def test_equal_options_and_those_of_the_training_are_accepted(checkpoint, data_dir, trained, tmp_path):
    lora = LoRAArgs(r=4, targets=["up_proj", "k"], dropout=0.2, lr_ratio=4)
    found = about(run(LoRAFinetuneArgs, checkpoint, data_dir, tmp_path / "out", init_from=trained["lora"].final, lora=lora))
    assert found["arguments"] == {**about(trained["lora"])["arguments"], "targets": "up,k", "dropout": 0.2, "lr_ratio": 4} or (
        found["arguments"]["targets"] == ["up", "k"]
    )


def test_full_finetuning_and_run_folders_are_refused_with_the_way_out(checkpoint, data_dir, trained, tmp_path):
    with pytest.raises(OptionError, match="To start from a finetuned model, use it as `checkpoint_dir`"):
        FullFinetuneArgs(checkpoint_dir=checkpoint, data_dir=data_dir, init_from=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"neither adapter.json nor PEFT's adapter_config.json. Use .*/final"):
        run(LoRAFinetuneArgs, checkpoint, data_dir, tmp_path / "out", init_from=trained["lora"].folder)


def test_dpo_measures_rewards_from_the_adapter_that_it_starts_from(checkpoint, trained, tmp_path):
    """At the first step the policy is the reference: the loss of a pair is log 2, as it would not be against the base."""
    (tmp_path / "pairs").mkdir()
    pair = {"prompt": "the red cat", "chosen": "sees the dog", "rejected": "eats"}
    (tmp_path / "pairs" / "train.jsonl").write_text((json.dumps(pair) + "\n") * 4)
    lora = LoRAArgs(dropout=0.0)
    done = run(DPOFinetuneArgs, checkpoint, tmp_path / "pairs", tmp_path / "dpo", init_from=trained["lora"].final, lora=lora)
    rows = read_rows(done.metrics)
    assert float(rows[0]["train_loss"]) == pytest.approx(0.693147, abs=1e-6)
    assert float(rows[-1]["train_loss"]) < 0.693
    model = load_model(checkpoint)
    attach_adapter(model, trained["lora"].final)
    ids = torch.arange(10)[None]
    started = model.eval()(ids)
    DPO().start(model)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data += 0.1
    with switched_off(model):
        assert torch.equal(model(ids), started)
    assert not torch.equal(model(ids), started)
