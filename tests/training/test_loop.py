"""The loop: gradients against one big batch, and runs that are killed and resumed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPOSITORY
from lightning.fabric import Fabric
from methods import randomize
from safetensors.torch import load_file
from tiny import make_data, rows

from lit_llm.checkpoint.load_model import load_model
from lit_llm.data.batches import StepPlan, collate, pack
from lit_llm.data.examples import tokenize_all
from lit_llm.methods.inject import freeze
from lit_llm.methods.lora import LoRA
from lit_llm.methods.loss import next_token_loss
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.training.loop import optimizer_step, validate
from lit_llm.training.objective import Objective


def gradients(checkpoint, examples, micro_batch_size, packing, activation_checkpointing=False):
    """Gradients of one step, caught where the optimizer would use them."""
    model = load_model(checkpoint)
    model.activation_checkpointing = activation_checkpointing
    torch.manual_seed(0)
    method = LoRA(targets="all-linear", dropout=0.0)
    method.attach(model)
    randomize(model)
    caught = {}

    class Catch(torch.optim.SGD):
        def step(self, closure=None):
            caught.update({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})

    fabric = Fabric(accelerator="cpu", devices=1)
    optimizer = Catch([{"params": freeze(model, method), "lr_scale": 1.0}], lr=1.0)
    objective, optimizer = fabric.setup(Objective(model, next_token_loss), optimizer)
    plan = StepPlan([len(e) for e in examples], len(examples), micro_batch_size, max(map(len, examples)), packing, 0)
    measured = optimizer_step(fabric, objective, optimizer, plan.pack(plan.examples(0)), examples, 1.0, None)
    return measured["train_loss"].item(), caught


@pytest.fixture(scope="module")
def ragged(checkpoint):
    """Eight masked examples of very different lengths."""
    examples, _ = tokenize_all(rows(8, seed=5), "alpaca", Tokenizer(checkpoint), True, 256)
    assert len({e.n_targets for e in examples}) > 3
    return examples


@pytest.mark.parametrize(("micro_batch_size", "packing"), [(1, False), (3, False), (1, True), (2, True)])
def test_gradient_of_micro_batches_equals_one_big_batch(checkpoint, ragged, micro_batch_size, packing):
    expected_loss, expected = gradients(checkpoint, ragged, 8, False)
    loss, found = gradients(checkpoint, ragged, micro_batch_size, packing)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)
        assert gradient.abs().max() > 1e-4


def test_gradient_with_activation_checkpointing_is_the_same(checkpoint, ragged):
    _, expected = gradients(checkpoint, ragged, 4, True)
    _, found = gradients(checkpoint, ragged, 4, True, activation_checkpointing=True)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-7)


def test_validation_loss_does_not_depend_on_the_batches(checkpoint, ragged):
    fabric = Fabric(accelerator="cpu", devices=1)
    objective = fabric.setup(Objective(load_model(checkpoint), next_token_loss))
    lengths = [len(e) for e in ragged]
    losses = []
    for size, packing in ((1, False), (8, False), (2, True)):
        groups = pack(range(8), lengths, size, max(lengths), packing)
        losses.append(validate(fabric, objective, [collate([ragged[i] for i in g]) for g in groups], None))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


# Whole runs, as a user starts them


OPTIONS = [
    "--train.epochs=2", "--train.global_batch_size=4", "--train.micro_batch_size=2", "--train.save_interval=3",
    "--eval.interval=4", "--eval.samples=0", "--lora.dropout=0.1", "--train.learning_rate=0.01", "--accelerator=cpu",
]  # fmt: skip
NOT_TIME = ("step", "epoch", "train_loss", "val_loss", "learning_rate", "grad_norm", "trained_tokens")


def arguments(checkpoint, data_dir, out_dir, *more):
    return [
        "finetune/lora.py",
        f"--checkpoint_dir={checkpoint}",
        f"--data_dir={data_dir}",
        f"--out_dir={out_dir}",
        *OPTIONS,
        *more,
    ]


def metrics(out_dir):
    with (out_dir / "metrics.csv").open() as file:
        return [{name: row[name] for name in NOT_TIME} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def long_data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data") / "long", n_train=22)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, checkpoint, long_data):
    out_dir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    command = [sys.executable, *arguments(checkpoint, long_data, out_dir)]
    subprocess.run(command, cwd=REPOSITORY, env=environment(), check=True, capture_output=True)
    return out_dir


def environment():
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def stop_after_a_save(command, out_dir, step, number):
    """Start a run, send it a signal once `step` is saved, and return its exit code and stderr."""
    process = subprocess.Popen([sys.executable, *command], cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out_dir / f"step-{step:06d}").is_dir():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


def assert_same_result(out_dir, expected_dir):
    found, expected = (load_file(d / "final" / "adapter.safetensors") for d in (out_dir, expected_dir))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert metrics(out_dir) == metrics(expected_dir)


def test_a_killed_run_resumes_bit_identically(tmp_path, checkpoint, long_data, uninterrupted, script):
    out_dir = tmp_path / "killed"
    command = arguments(checkpoint, long_data, out_dir)
    code, _ = stop_after_a_save(command, out_dir, 6, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (out_dir / "final").exists()
    resumed = script(*command, "--resume=auto")
    assert "resuming from" in resumed.stderr
    assert_same_result(out_dir, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_exits_130_and_resumes(tmp_path, checkpoint, long_data, uninterrupted, script, number):
    out_dir = tmp_path / "interrupted"
    command = arguments(checkpoint, long_data, out_dir)
    code, stderr = stop_after_a_save(command, out_dir, 3, number)
    assert code == 130, stderr
    assert "Traceback" not in stderr
    script(*command, "--resume=auto")
    assert_same_result(out_dir, uninterrupted)


def test_metrics_have_a_row_per_step_and_asked_validations(uninterrupted):
    rows_ = metrics(uninterrupted)
    assert [int(row["step"]) for row in rows_] == list(range(13))  # 22 examples in steps of 4: 6 steps an epoch
    assert [int(row["step"]) for row in rows_ if row["val_loss"]] == [0, 4, 8, 12]
    assert float(rows_[0]["val_loss"]) > float(rows_[-1]["val_loss"])
    assert float(rows_[-1]["epoch"]) == 2


def test_the_last_partial_step_is_trained(uninterrupted, long_data, checkpoint):
    """22 examples in steps of 4: the sixth step of an epoch has two, and every label counts once per epoch."""
    records = [json.loads(line) for line in (long_data / "train.jsonl").read_text().splitlines()]
    examples, _ = tokenize_all(records, "alpaca", Tokenizer(checkpoint), True, 256)
    assert int(metrics(uninterrupted)[-1]["trained_tokens"]) == 2 * sum(e.n_targets for e in examples)


def test_args_yaml_repeats_the_run(tmp_path, uninterrupted, script):
    script("finetune/lora.py", f"--config={uninterrupted}/args.yaml", f"--out_dir={tmp_path}/again")
    assert_same_result(tmp_path / "again", uninterrupted)


def test_a_folder_with_a_run_is_not_overwritten(checkpoint, long_data, uninterrupted, script):
    done = script(*arguments(checkpoint, long_data, uninterrupted), check=False)
    assert done.returncode == 2
    assert "already holds a run" in done.stderr


def test_resume_refuses_other_options(checkpoint, long_data, uninterrupted, script):
    done = script(*arguments(checkpoint, long_data, uninterrupted, "--resume=auto", "--lora.r=4"), check=False)
    assert done.returncode == 2
    assert "--lora" in done.stderr


def test_resume_auto_on_an_empty_folder_starts_afresh(tmp_path, checkpoint, long_data, uninterrupted, script):
    script(*arguments(checkpoint, long_data, tmp_path / "fresh", "--resume=auto"))
    assert_same_result(tmp_path / "fresh", uninterrupted)


@pytest.mark.parametrize(("option", "steps"), [("--train.max_steps=5", 5), ("--train.max_time=1e-9", 1)])
def test_training_ends_at_the_first_limit(tmp_path, checkpoint, long_data, script, option, steps):
    script(*arguments(checkpoint, long_data, tmp_path / "limited", option))
    assert len(metrics(tmp_path / "limited")) == steps + 1
    assert (tmp_path / "limited" / "final" / "adapter.safetensors").is_file()


def test_a_warmup_that_reaches_the_end_is_refused(tmp_path, checkpoint, long_data, script):
    done = script(*arguments(checkpoint, long_data, tmp_path / "x", "--train.lr_warmup_steps=12"), check=False)
    assert done.returncode == 2
    assert "reaches the end of the run" in done.stderr
    assert not (tmp_path / "x").exists()
