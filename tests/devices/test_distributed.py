"""Several processes, started as a user starts them, against one."""

import csv
import dataclasses
import math
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
from ranks import CASES, PRECISIONS, QUANTIZED, RESUMED, measure, ragged
from safetensors.torch import load_file
from tiny import make_data

from lit_llm.args.finetune import FullFinetuneArgs, LoRAFinetuneArgs, TrainArgs
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.read import expected_shapes, read_config
from lit_llm.data.batches import StepPlan
from lit_llm.training.fabric import check_devices, choose_strategy

ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}", "OMP_NUM_THREADS": "1"}
CPU = torch.device("cpu")


def test_examples_are_dealt_once_and_ranks_make_equal_passes(checkpoint):
    lengths = [len(example) for example in ragged(checkpoint)]
    for packing in (True, False):
        plan = StepPlan(lengths, 9, 2, max(lengths), packing, 0)
        for n_ranks in (1, 2, 4, 16):
            dealt = plan.deal(plan.examples(0), n_ranks)
            assert len(dealt) == n_ranks
            assert len({len(groups) for groups in dealt}) == 1
            assert sorted(i for groups in dealt for group in groups for i in group) == list(range(9))
        assert plan.deal(plan.examples(0), 1)[0] == plan.pack(plan.examples(0))
        tokens = [sum(lengths[i] for group in groups for i in group) for groups in plan.deal(plan.examples(0), 2)]
        assert max(tokens) < 1.2 * min(tokens)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the saves, and of what several processes find."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def one_process(checkpoint, folder):
    """Loss, gradients and weights of each method from one big batch; saves of some."""
    saves = {name: folder / f"one-{name}" if name in RESUMED else None for name in CASES}
    found = {f"{name}/{n}": t for name in CASES for n, t in measure(checkpoint, name, 9, save_to=saves[name]).items()}
    for name in RESUMED:
        found |= {f"one-{name}/{n}": t for n, t in measure(checkpoint, name, 9, load_from=saves[name]).items()}
    return found


@pytest.fixture(scope="module")
def several(checkpoint, folder, one_process):
    """What each strategy on each number of processes has found."""
    command = [sys.executable, REPOSITORY / "tests/support/ranks.py", checkpoint, folder]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


def assert_equal(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.abs().max() > 1e-4, name
        assert (found[name] - tensor).norm() < tolerance * tensor.norm(), name


def of(found, case):
    return {name: tensor for name, tensor in found.items() if name.startswith(f"{case}/")}


@pytest.mark.parametrize("run", ["ddp-2", "ddp-4", "fsdp-2", "fsdp-4"])
def test_several_processes_equal_one_in_loss_and_weights(several, one_process, run):
    for case in CASES:
        if (run[:4], case) != ("fsdp", "lora-int8"):
            # bfloat16 has 8 bits, and a product of other rows is rounded otherwise
            assert_equal(of(several[run], case), of(one_process, case), 5e-2 if case in PRECISIONS else 1e-5)


@pytest.mark.parametrize("case", RESUMED)
def test_a_sharded_run_resumes_in_one_process_and_the_reverse(several, one_process, checkpoint, folder, case):
    """Weights come back to the last bit; the gradients of the next step and the weights after it are the same."""
    sharded = several["fsdp-2"]
    in_one = measure(checkpoint, case, 9, load_from=folder / f"fsdp-{case}")
    for name in [name for name in in_one if name.startswith("before/")]:
        saved = sharded[f"saved-{case}/after/{name[7:]}"]
        assert torch.equal(in_one[name], saved)
        assert torch.equal(sharded[f"own-{case}/{name}"], saved)
        assert torch.equal(sharded[f"one-{case}/{name}"], one_process[f"{case}/after/{name[7:]}"])
    assert_equal({f"own-{case}/{n}": t for n, t in in_one.items()}, of(sharded, f"own-{case}"))
    assert_equal(of(sharded, f"one-{case}"), of(one_process, f"one-{case}"))


@pytest.mark.parametrize("n_ranks", [2, 4])
@pytest.mark.parametrize("quantization", QUANTIZED)
def test_a_rank_quantizes_its_rows_and_holds_one_more_block(several, checkpoint, quantization, n_ranks):
    found, model = several[f"fsdp-{n_ranks}"], load_model(checkpoint, quantize=quantization)
    for name, parameter in model.named_parameters():
        assert torch.equal(found[f"{quantization}/base/{name}"], parameter), name
    block = sum(p.nbytes for n, p in model.h[0].named_parameters() if "norm" not in n and "nested" not in n)
    loaded, most = found[f"{quantization}/bytes"].tolist()
    assert loaded == block * len(model.h) / n_ranks
    assert most == block + block * (len(model.h) - 1) / n_ranks


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


def test_a_killed_run_resumes_on_other_numbers_of_devices(tmp_path, checkpoint, long_data, in_process):
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


def choose(device="cpu", config=None, kind=LoRAFinetuneArgs, train=None, **options):
    args = kind(devices=2, train=TrainArgs(**(train or {})), **{"precision": "32-true", **options})
    n_weights = 0 if config is None else sum(map(math.prod, expected_shapes(config).values()))
    return choose_strategy(args, torch.device(device), n_weights, kind is FullFinetuneArgs)


def test_strategy_follows_from_model_size_and_gives_its_reason(checkpoint):
    small = read_config(checkpoint)
    large = dataclasses.replace(small, n_embd=2**17, intermediate_size=2**18)  # 2^38 weights and more
    assert choose(config=small)[0] == "ddp"
    assert choose(config=large, quantize="bnb.nf4") == ("ddp", "ddp, since a base in bnb.nf4 is small")
    strategy, why = choose(config=large)
    assert (strategy, why[:21]) == ("fsdp", "fsdp, since weights, ")
    assert choose(config=large, train={"optimizer": "adafactor"})[0] == "ddp"
    assert choose(config=small, strategy="fsdp") == ("fsdp", "fsdp, as requested")
    assert choose_strategy(LoRAFinetuneArgs(), CPU, 1, False) == ("one", "one device")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"quantize": "bnb.int8"}, "Use `strategy` ddp, or bnb.nf4"),
        ({"precision": "16-mixed"}, "Use bf16-mixed"),
        ({"train": {"compile": True}}, "Omit it"),
        ({"train": {"optimizer": "adamw8bit"}}, "Use adamw or sgd"),
        ({"cpu_offload": True}, "`cpu_offload` is for GPUs"),
        ({"cpu_offload": True, "device": "cuda", "quantize": "bnb.nf4"}, "`cpu_offload` and `quantize` exclude each other"),
    ],
)
def test_what_cannot_be_sharded_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        choose(strategy="fsdp", **options)


def test_a_strategy_for_one_device_is_refused(checkpoint):
    with pytest.raises(ValueError, match="needs `devices` above 1"):
        choose_strategy(LoRAFinetuneArgs(strategy="ddp"), CPU, 1, False)
