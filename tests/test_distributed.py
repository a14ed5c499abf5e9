"""Several processes, started as a user starts them, against one."""

import csv
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from lightning.fabric import Fabric
from ranks import CASES, measure, ragged
from safetensors.torch import load_file
from tiny import make_data

from lit_llm.args.finetune import FullFinetuneArgs, LoRAFinetuneArgs
from lit_llm.data import Plan
from lit_llm.runtime import check_devices

ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}", "OMP_NUM_THREADS": "1"}
CPU = torch.device("cpu")


def test_every_example_is_dealt_once_and_all_ranks_make_as_many_passes(checkpoint):
    lengths = [len(example) for example in ragged(checkpoint)]
    for packing in (True, False):
        plan = Plan(lengths, 9, 2, max(lengths), packing, 0)
        for n_ranks in (1, 2, 4, 16):
            dealt = plan.deal(plan.examples(0), n_ranks)
            assert len(dealt) == n_ranks
            assert len({len(groups) for groups in dealt}) == 1
            assert sorted(i for groups in dealt for group in groups for i in group) == list(range(9))
        assert plan.deal(plan.examples(0), 1)[0] == plan.lay_out(plan.examples(0))
        tokens = [sum(lengths[i] for group in groups for i in group) for groups in plan.deal(plan.examples(0), 2)]
        assert max(tokens) < 1.2 * min(tokens)


@pytest.fixture(scope="module")
def one_process(checkpoint):
    """Loss and gradients of each method from one big batch."""
    fabric = Fabric(accelerator="cpu", devices=1)
    return {f"{name}/{n}": t for name in CASES for n, t in measure(fabric, checkpoint, name, 9).items()}


@pytest.fixture(scope="module")
def several(checkpoint, tmp_path_factory):
    """Folder with loss and gradients of each method from 2 and from 4 processes."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, REPOSITORY / "tests/ranks.py", checkpoint, folder]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("n_devices", [2, 4])
def test_loss_and_gradients_of_several_processes_equal_those_of_one(several, one_process, n_devices):
    found = load_file(several / f"{n_devices}.safetensors")
    assert found.keys() == one_process.keys()
    for name, expected in one_process.items():
        assert expected.abs().max() > 1e-4, name
        assert (found[name] - expected).norm() < 1e-5 * expected.norm(), name


# Whole runs


def arguments(checkpoint, data_dir, out_dir, *more):
    return [
        "finetune/lora.py", f"--checkpoint_dir={checkpoint}", f"--data_dir={data_dir}", f"--out_dir={out_dir}",
        "--train.epochs=2", "--train.global_batch_size=4", "--train.micro_batch_size=2", "--train.save_interval=3",
        "--eval.interval=4", "--eval.samples=0", "--lora.dropout=0.0", "--train.learning_rate=0.01", "--accelerator=cpu", *more,
    ]  # fmt: skip


@pytest.fixture
def in_process(monkeypatch):
    """Run a script in this process."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # to be as it was, afterwards

    def run(arguments):
        monkeypatch.setattr(sys, "argv", list(arguments))
        runpy.run_path(str(REPOSITORY / arguments[0]), run_name="__main__")

    return run


def metrics(out_dir):
    with (out_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [[float(row[name] or "nan") for name in ("step", "trained_tokens", "train_loss", "val_loss")] for row in rows]


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def send_after_a_save(command, out_dir, step, number, choose):
    """Start a run and send a signal to the process that `choose` takes from its id. Returns exit code, stderr and seconds."""
    process = subprocess.Popen([sys.executable, *command], cwd=REPOSITORY, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out_dir / f"step-{step:06d}").is_dir():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(choose(process.pid), number)
    start = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr, time.monotonic() - start


@pytest.fixture(scope="module")
def long_data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data") / "long", n_train=42)


def test_a_run_whose_rank_is_killed_and_that_is_interrupted_goes_on_with_other_numbers_of_devices(
    tmp_path, checkpoint, long_data, in_process
):
    """One device, then two of which one is killed, then two that are interrupted, then one: as one device throughout."""
    run = tmp_path / "run"
    in_process(arguments(checkpoint, long_data, run))
    shutil.copytree(run, tmp_path / "one")
    for folder in [*sorted(run.glob("step-*"))[1:], run / "final"]:
        shutil.rmtree(folder)
    command = arguments(checkpoint, long_data, run, "--resume=auto")
    code, stderr, seconds = send_after_a_save([*command, "--devices=2"], run, 6, signal.SIGKILL, lambda pid: children(pid)[0])
    assert code == 2, stderr
    assert "error: the process of rank 1 was ended by SIGKILL" in stderr
    assert "--resume auto" in stderr
    assert "devices differ" in stderr
    assert seconds < 60
    code, stderr, _ = send_after_a_save([*command, "--devices=2"], run, 12, signal.SIGINT, lambda pid: children(pid)[0])
    assert code == 130, stderr
    assert "Traceback" not in stderr
    last = sorted(run.glob("step-*"))[-1]
    assert int(last.name[5:]) == metrics(run)[-1][0]  # all ranks stopped at the same step
    in_process(command)
    expected, found = metrics(tmp_path / "one"), metrics(run)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=0, equal_nan=True)
    weights, wanted = (load_file(folder / "final" / "adapter.safetensors") for folder in (run, tmp_path / "one"))
    for name, tensor in wanted.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)


# Refused before anything is started


@pytest.mark.parametrize(
    ("changes", "device", "told"),
    [
        ({"devices": 2}, "mps", "MPS is one device"),
        ({"devices": 64}, "cuda", "CUDA devices"),
        ({"num_nodes": 2}, "cpu", "needs torchrun or srun"),
    ],
)
def test_what_cannot_run_is_refused_before_it_starts(changes, device, told):
    with pytest.raises(ValueError, match=told):
        check_devices(LoRAFinetuneArgs(**changes), torch.device(device))


def test_a_wrong_number_of_started_processes_is_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_devices(FullFinetuneArgs(devices=2, num_nodes=2), CPU)
    with pytest.raises(ValueError, match="4 processes were started"):
        check_devices(FullFinetuneArgs(devices=2), CPU)
