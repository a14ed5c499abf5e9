"""What keeps a long run safe: limits on saves, early stopping, losses that go wrong, the probe before it."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file
from tiny import make_checkpoint

from lit_llm.args.finetune import AdapterFinetuneArgs, EvalArgs, FullFinetuneArgs, LoRAFinetuneArgs, TrainArgs
from lit_llm.checkpoint.load_model import load_model
from lit_llm.methods.adapter import Adapter
from lit_llm.methods.full import Full
from lit_llm.methods.lora import LoRA
from lit_llm.training.finetune import finetune
from lit_llm.training.summary import summary


@pytest.fixture
def run(tmp_path, checkpoint, data_dir):
    """Finetune in this process: 20 examples in steps of 4. Returns the run folder."""

    def go(name, resume=None, eval_interval=None, patience=None, **train):
        train = {"global_batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "lr_warmup_steps": 0, **train}
        args = LoRAFinetuneArgs(
            checkpoint_dir=checkpoint, data_dir=data_dir, out_dir=tmp_path / name, accelerator="cpu", resume=resume,
            train=TrainArgs(**train), eval=EvalArgs(interval=eval_interval, patience=patience, samples=0),
        )  # fmt: skip
        finetune(args, LoRA(**{**vars(args.lora), "dropout": 0.1}))
        return tmp_path / name

    return go


def rows(out_dir):
    with (out_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def weights(folder):
    return load_file(folder / "adapter.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_only_the_newest_saves_are_kept(run):
    out_dir = run("kept", epochs=2, save_interval=2, keep_last=2)
    assert sorted(p.name for p in out_dir.glob("step-*")) == ["step-000006", "step-000008"]
    assert not list(out_dir.glob(".*"))


def test_early_stopping_counts_patience_across_a_resume(run):
    """A learning rate that ruins the model: no validation is better than the first ones."""
    options = {"eval_interval": 1, "patience": 3, "epochs": 4, "learning_rate": 0.3, "save_interval": 1, "keep_last": 2}
    stopped = run("stopped", **options)
    losses = [float(row["val_loss"]) for row in rows(stopped)][1:]  # the first row is from before training
    assert len(losses) < 20
    assert losses.index(min(losses)) == len(losses) - 4
    assert (stopped / "final" / "adapter.safetensors").is_file()
    before, expected = rows(stopped), weights(stopped / "final")
    shutil.rmtree(stopped / "final")
    run("stopped", resume="auto", **options)
    assert [row["val_loss"] for row in rows(stopped)] == [row["val_loss"] for row in before]
    assert same(weights(stopped / "final"), expected)


def assert_stopped_after_good_saves(out_dir, told):
    """`told` names the newest save, which is of the step before; all are of numbers, and there is no result."""
    assert not (out_dir / "final").exists()
    saves = sorted(out_dir.glob("step-*"))
    assert f"the last good save is {saves[-1]}" in told
    assert f"at step {len(saves) + 1};" in told
    for save in saves:
        assert all(torch.isfinite(tensor).all() for tensor in weights(save).values())
    return len(saves) + 1


def test_a_nan_loss_stops_the_run_and_is_never_saved(tmp_path, run):
    """With rows so rare that only a save makes the loop look at the loss."""
    with pytest.raises(ValueError, match=r"is (nan|inf)") as told:
        run("wrong", epochs=4, save_interval=1, log_interval=100, learning_rate=1e30, max_norm=None)
    assert_stopped_after_good_saves(tmp_path / "wrong", str(told.value))


def test_nan_weights_are_never_saved(tmp_path, checkpoint, data_dir):
    """The loss of the only step is that of the weights before it."""
    for name, options in {"saved": {"max_steps": 3, "save_interval": 1}, "final": {"max_steps": 1}}.items():
        train = TrainArgs(learning_rate=3e38, lr_warmup_steps=0, probe=False, **options)
        args = FullFinetuneArgs(
            checkpoint_dir=checkpoint, data_dir=data_dir, out_dir=tmp_path / name, accelerator="cpu", train=train,
            eval=EvalArgs(samples=0),
        )  # fmt: skip
        with pytest.raises(ValueError, match="the largest trained weight is inf at step 1; nothing was saved"):
            finetune(args, Full())
        assert not [path for path in (tmp_path / name).iterdir() if path.is_dir()]


def test_a_validation_loss_that_is_no_number_stops_the_run(tmp_path, run):
    """The weights are large, but numbers."""
    with pytest.raises(ValueError, match=r"the validation loss is nan at step 1; nothing was saved"):
        run("wrong", max_steps=1, learning_rate=1e30, max_norm=None)
    assert not (tmp_path / "wrong" / "final").exists()


def test_a_base_with_nan_validation_loss_is_not_trained(tmp_path, checkpoint, data_dir):
    base = shutil.copytree(checkpoint, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][:] = 3e38  # finite, but not what is computed with it
    save_file(tensors, base / "model.safetensors")
    args = LoRAFinetuneArgs(checkpoint_dir=base, data_dir=data_dir, out_dir=tmp_path / "run", eval=EvalArgs(samples=0))
    with pytest.raises(ValueError, match="before the first step is nan"):
        finetune(args, LoRA())


def test_a_loss_above_the_running_mean_stops_the_run(tmp_path, run):
    losses = [float(row["train_loss"]) for row in rows(run("free", epochs=2, learning_rate=0.5))[1:]]
    mean, ratios = losses[0], []
    for loss in losses[1:]:
        ratios.append(loss / mean)
        mean = 0.9 * mean + 0.1 * loss
    limit = max(1.0, *ratios[:-1]) - 1e-4
    assert limit > 1, losses
    with pytest.raises(ValueError, match=r"above `train\.max_loss_spike`") as told:
        run("spike", epochs=2, learning_rate=0.5, save_interval=1, max_loss_spike=limit)
    at = assert_stopped_after_good_saves(tmp_path / "spike", str(told.value))
    assert at == 2 + next(i for i, ratio in enumerate(ratios) if ratio > limit)


def test_overfitting_sees_the_first_batches_alone(run):
    out_dir = run("overfit", max_steps=40, overfit_batches=1, learning_rate=5e-2)
    found = rows(out_dir)
    assert float(found[-1]["val_loss"]) < float(found[0]["val_loss"]) / 2
    assert {row["epoch"] for row in found} == {str(i) for i in range(41)}  # a step is an epoch


def test_the_probe_changes_nothing(run, capsys):
    probed, plain = run("probed"), None
    told = capsys.readouterr().err
    plain = run("plain", probe=False)
    assert "longest micro-batch" in told
    assert "longest micro-batch" not in capsys.readouterr().err
    assert same(weights(probed / "final"), weights(plain / "final"))
    assert [r["train_loss"] for r in rows(probed)] == [r["train_loss"] for r in rows(plain)]


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from lit_llm.args.finetune import EvalArgs, LoRAFinetuneArgs, TrainArgs
from lit_llm import cli
from lit_llm.training.finetune import finetune
from lit_llm.methods.lora import LoRA
import lit_llm.training.probe, lit_llm.training.finetune, torch

folder = Path(sys.argv[1])

def main(args: LoRAFinetuneArgs) -> None:
    probe = lit_llm.training.finetune.probe

    def limited(*a):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20, resource.RLIM_INFINITY))
        try:
            return probe(*a)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

    lit_llm.training.finetune.probe = limited
    finetune(args, LoRA())

cli.run(main)
"""


def test_out_of_memory_is_explained_before_the_first_step(tmp_path):
    """The probe really fails: the process may take 100 MB more. What is said to help is what an estimate says."""
    base = make_checkpoint(
        tmp_path / "base", hidden_size=256, num_hidden_layers=8, intermediate_size=1024, max_position_embeddings=2048
    )
    (tmp_path / "data").mkdir()
    record = {"instruction": "the red cat", "output": "sees a bird " * 300}
    (tmp_path / "data" / "train.jsonl").write_text((json.dumps(record) + "\n") * 8)
    options = [
        f"--checkpoint_dir={base}", f"--data_dir={tmp_path}/data", f"--out_dir={tmp_path}/run", "--train.global_batch_size=8",
        "--eval.samples=0", "--accelerator=cpu",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "out of memory in a micro-batch of 4 documents" in errors[0]
    assert "the largest is activations" in errors[1]
    for flag in ("--train.micro_batch_size 2", "--train.activation_checkpointing", "--max_seq_length"):
        assert any(flag in line and "would save" in line for line in errors), flag
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("step-*"))


def test_the_summary_counts_weights_by_kind(checkpoint):
    model = load_model(checkpoint, quantize="bnb.nf4")
    LoRA(r=4).attach(model)
    lines = {line.split()[0]: line.split()[1:] for line in summary(model).splitlines()[2:]}
    n_mlp, n_attention, n_lora = 2 * 3 * 32 * 48, 2 * 4 * 32 * 32, 2 * 2 * 4 * (32 + 32)
    assert lines["mlp"] == ["0", f"{n_mlp:,}", "nf4"]
    assert lines["attention"] == ["0", f"{n_attention:,}", "nf4"]
    assert lines["embeddings"] == ["0", "10,240", "float32"]
    assert lines["lora"] == [f"{n_lora:,}", "0", "float32"]


@pytest.mark.parametrize(
    ("kind", "make", "precision"),
    [
        (LoRAFinetuneArgs, LoRA, "bf16-mixed"), (LoRAFinetuneArgs, LoRA, "16-mixed"), (LoRAFinetuneArgs, LoRA, "bf16-true"),
        (FullFinetuneArgs, Full, "bf16-true"), (FullFinetuneArgs, Full, "bf16-mixed"),
        (FullFinetuneArgs, lambda: Full("h.1,norm"), "bf16-true"),
        (AdapterFinetuneArgs, lambda: Adapter(start_layer=0), "bf16-mixed"),
    ],
)  # fmt: skip
def test_half_precision_trains_as_float32_does(tmp_path, checkpoint, data_dir, kind, make, precision):
    losses = {}
    for name in ("32-true", precision):
        train = TrainArgs(
            global_batch_size=4, micro_batch_size=2, learning_rate=1e-2, lr_warmup_steps=0, max_steps=6, probe=False
        )
        args = kind(
            checkpoint_dir=checkpoint, data_dir=data_dir, out_dir=tmp_path / name, accelerator="cpu", precision=name,
            train=train, eval=EvalArgs(samples=3),
        )  # fmt: skip
        finetune(args, make())
        losses[name] = [float(row["val_loss"]) for row in rows(tmp_path / name) if row["val_loss"]]
    assert losses[precision] == pytest.approx(losses["32-true"], rel=5e-3)
    assert abs(losses[precision][-1] - losses[precision][0]) > 1e-3
