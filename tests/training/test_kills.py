"""Programs that are killed while they write, and programs that are started twice at once.

`pytest -m slow -n 0 tests/training/test_kills.py` runs all of them. Without `-m slow` a few of them are killed once.
"""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from test_resume import metrics
from tiny import make_data, rows

from lit_llm.args.data import PrepareJsonArgs
from lit_llm.args.finetune import DPOFinetuneArgs, EvalArgs, FullFinetuneArgs, LoRAFinetuneArgs, TrainArgs
from lit_llm.errors import LitError

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(  # so that no program has to import them again, which takes seconds
    [
        "lit_llm.training.finetune", "lit_llm.checkpoint.convert", "lit_llm.checkpoint.export", "lit_llm.data.prepare",
        "lightning.fabric", "lightning.fabric.strategies.ddp", "matplotlib.backends.backend_agg", "matplotlib.figure",
        "torch._dynamo",
    ]
)  # fmt: skip


def train(kind, data):
    from lit_llm.training.finetune import finetune

    train = TrainArgs(
        max_steps=6, global_batch_size=4, micro_batch_size=2, learning_rate=1e-2, save_interval=2, keep_last=2, probe=False
    )
    args = kind(
        checkpoint_dir="checkpoint", data_dir=data, out_dir="result", accelerator="cpu", resume="auto", train=train,
        eval=EvalArgs(interval=3, samples=0),
    )  # fmt: skip
    finetune(args)


def prepare():
    from lit_llm.data.prepare import prepare_table

    args = PrepareJsonArgs(json_path="rows/train.jsonl", destination_path="result", val_split_fraction=0.3, write_dropped=True)
    prepare_table(args)


def merge():
    from lit_llm.checkpoint.merge import merge_adapters

    merge_adapters("checkpoint", ["adapter"], [1.0], "result")


def export():
    from lit_llm.checkpoint.export import export_hf

    export_hf("converted", "result")


def convert():
    from lit_llm.checkpoint.convert import convert

    convert("result")


COMMANDS = {
    "lora": lambda: train(LoRAFinetuneArgs, "rows"),
    "full": lambda: train(FullFinetuneArgs, "rows"),
    "dpo": lambda: train(DPOFinetuneArgs, "pairs"),
    "prepare": prepare,
    "merge": merge,
    "export": export,
    "convert": convert,
}
RUNS = ("lora", "full", "dpo")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, checkpoint):
    """What the commands read, and the folders that some of them find in their place."""
    from lit_llm.checkpoint.adapters import write_adapter
    from lit_llm.checkpoint.convert import convert
    from lit_llm.checkpoint.load_model import load_model
    from lit_llm.data.prepare import prepare_table
    from lit_llm.methods.lora import LoRA

    folder = tmp_path_factory.mktemp("inputs")
    make_data(folder / "rows")
    (folder / "pairs").mkdir()
    pairs = zip(rows(20, 1), rows(20, 2), strict=True)
    lines = [{"prompt": a["instruction"], "chosen": a["output"], "rejected": b["output"]} for a, b in pairs]
    (folder / "pairs" / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for name in ("checkpoint", "converted", "convert"):
        shutil.copytree(checkpoint, folder / name)
    convert(folder / "converted")
    convert(folder / "convert", dtype="bfloat16")
    method, model = LoRA(), load_model(checkpoint)
    method.attach(model)
    (folder / "adapter").mkdir()
    write_adapter(folder / "adapter", model, method, checkpoint, "alpaca")
    source = folder / "rows" / "train.jsonl"
    prepare_table(PrepareJsonArgs(json_path=str(source), destination_path=folder / "prepare"))
    return folder


def workplace(inputs, folder, name):
    """Make a folder to run a command in."""
    folder.mkdir()
    for path in inputs.iterdir():
        if path.name not in ("prepare", "convert"):
            (folder / path.name).symlink_to(path)
    if (inputs / name).is_dir():
        shutil.copytree(inputs / name, folder / "result")
    return folder


class Changes:
    """Counts the changes of the disk that this process begins in its folder, and acts before one of them.

    Python raises an audit event (PEP 578) before each: a file opened to be written, renamed, removed, or a folder made.
    """

    def __init__(self, act):
        self.n, self.act, self.folder = 0, act, os.getcwd()
        sync = os.fsync

        def fsync(descriptor):
            self.count("fsync")
            sync(descriptor)

        os.fsync = fsync
        sys.addaudithook(self.see)

    def see(self, event, arguments):
        if event == "open":
            path, _, flags = arguments
            changes = flags & (os.O_WRONLY | os.O_RDWR) and isinstance(path, (str, os.PathLike))
        else:
            path, changes = arguments[0] if arguments else None, event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
        if changes and os.path.abspath(path).startswith(self.folder):
            self.count(f"{event} {path}")

    def count(self, change):
        self.n += 1
        self.act(self.n, change)


def call(name, folder, act, ended=None):
    """Run a command in this process. Mistakes that a user can fix are one line, and exit code 1."""
    os.chdir(folder)
    log = open(f"{folder}.log", "a")  # noqa: SIM115
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    changes = Changes(act)
    try:
        COMMANDS[name]()
        Path(f"{folder}.n").write_text(str(changes.n))
    except LitError as error:
        sys.exit(f"error: {error}")
    finally:
        if ended is not None:
            ended.set()


def call_until(name, folder, last):
    """Run a command that is killed before its change with this number."""

    def act(n, change):
        if n == last:
            os.kill(os.getpid(), signal.SIGKILL)

    call(name, folder, act)


def call_with_another(name, folder, barrier, ended):
    """Run a command that waits for the end of another process before it makes a new folder."""

    def act(n, change):
        if change.startswith("os.mkdir") and ".new-" in change:
            ended.wait(60)

    barrier.wait()
    call(name, folder, act, ended)


def run_command(name, folder, last=None, seconds=None):
    process = CONTEXT.Process(target=call_until, args=(name, folder, last))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def outcome(name, folder):
    """Everything below `result` that two runs have in common, by its path."""
    result = folder / "result"
    found = {}
    for path in sorted(result.rglob("*")):
        same = path.is_file() and (name not in RUNS or path.suffix == ".safetensors")
        found[str(path.relative_to(result))] = path.read_bytes() if same else None
    if name in RUNS:
        found["rows"] = metrics(result)
    return found


@pytest.fixture(scope="module")
def reference(inputs, tmp_path_factory):
    """The outcome of a command that nobody kills, and the number of its changes; by its name."""
    known = {}

    def make(name):
        if name not in known:
            folder = workplace(inputs, tmp_path_factory.mktemp("reference") / name, name)
            start = time.monotonic()
            assert run_command(name, folder) == 0, Path(f"{folder}.log").read_text()
            known[name] = outcome(name, folder), int(Path(f"{folder}.n").read_text()), time.monotonic() - start
        return known[name]

    return make


def kill_and_repeat(name, inputs, reference, folder, last=None, seconds=None):
    expected = reference(name)[0]
    workplace(inputs, folder, name)
    code = run_command(name, folder, last, seconds)
    assert code == -signal.SIGKILL or (last is None and code == 0), Path(f"{folder}.log").read_text()
    again, log = run_command(name, folder), Path(f"{folder}.log").read_text()
    was_done = again == 1 and "already holds files" in log.splitlines()[-1]  # killed after the last rename
    assert again == 0 or was_done, log
    assert outcome(name, folder) == expected
    assert not [str(path) for path in folder.rglob(".*")], "left behind"
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("full", "dpo")])
def test_a_killed_command_is_repeated_cleanly(inputs, reference, tmp_path, name):
    n_changes = reference(name)[1]
    kill_and_repeat(name, inputs, reference, tmp_path / name, last=n_changes * 2 // 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_anywhere_a_command_is_repeated_cleanly(inputs, reference, tmp_path, name):
    """Before every change of the disk for commands that end in a moment, before 6 for runs; and at 2 drawn times."""
    _, n_changes, duration = reference(name)
    points = range(1, n_changes + 1) if name not in RUNS else [round(n_changes * (i + 0.5) / 6) for i in range(6)]
    for last in points:
        kill_and_repeat(name, inputs, reference, tmp_path / f"{name}-{last}", last=last)
    draw = random.Random(name)
    for i in range(2):
        kill_and_repeat(name, inputs, reference, tmp_path / f"{name}-time-{i}", seconds=draw.uniform(0.2, 1) * duration)
    print(f"{name}: killed before {len(points)} of {n_changes} changes, and at 2 times")


def start_two(name, inputs, reference, folder):
    workplace(inputs, folder, name)
    barrier, ended = CONTEXT.Barrier(2), CONTEXT.Event()
    both = [CONTEXT.Process(target=call_with_another, args=(name, folder, barrier, ended)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    log = Path(f"{folder}.log").read_text()
    assert sorted(process.exitcode for process in both) == [0, 1], log
    assert len(re.findall("error: .* is being written by", log)) == 1
    assert outcome(name, folder) == reference(name)[0]
    assert not [str(path) for path in folder.rglob(".*")], "left behind"


@pytest.mark.parametrize("name", ["lora", "merge"])
def test_of_two_simultaneous_starts_one_wins(inputs, reference, tmp_path, name):
    start_two(name, inputs, reference, tmp_path / name)


@pytest.mark.slow
def test_of_two_simultaneous_starts_one_wins_20_times(inputs, reference, tmp_path):
    for i, name in zip(range(20), [*COMMANDS] * 3, strict=False):
        start_two(name, inputs, reference, tmp_path / f"{name}-{i}")
