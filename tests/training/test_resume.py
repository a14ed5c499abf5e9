"""A run that is killed again and again, and runs of every method that go on from the middle of an epoch."""

import csv
import json
import multiprocessing
import random
import shutil
import signal
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import make_data, rows

from lit_llm.args.finetune import (
    AdapterFinetuneArgs,
    AdapterV2FinetuneArgs,
    DPOArgs,
    DPOFinetuneArgs,
    EvalArgs,
    FullFinetuneArgs,
    LoRAArgs,
    LoRAFinetuneArgs,
    TrainArgs,
)
from lit_llm.errors import CheckpointError
from lit_llm.methods.adapter import Adapter
from lit_llm.methods.adapter_v2 import AdapterV2
from lit_llm.methods.dpo import DPO
from lit_llm.methods.full import Full
from lit_llm.methods.lora import LoRA
from lit_llm.training.finetune import finetune
from lit_llm.training.metrics import Metrics, read_rows
from lit_llm.training.run_folder import RunFolder
from lit_llm.training.saves import State

TIME = {"tokens_per_second", "peak_memory_gb", "seconds"}


def metrics(out_dir):
    with (out_dir / "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if name not in TIME} for row in csv.DictReader(file)]


def result(out_dir):
    (path,) = (out_dir / "final").glob("*.safetensors")
    return load_file(path)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# A run that is killed


def long_run(checkpoint, data_dir, out_dir):
    """LoRA with dropout: 100 steps, a save every second of them, a validation and perhaps a `best` every third."""
    train = TrainArgs(
        epochs=10, global_batch_size=4, micro_batch_size=2, learning_rate=1e-2, save_interval=2, keep_last=3, probe=False
    )
    args = LoRAFinetuneArgs(
        checkpoint_dir=checkpoint, data_dir=data_dir, out_dir=out_dir, accelerator="cpu", resume="auto", train=train,
        eval=EvalArgs(interval=3, samples=0),
    )  # fmt: skip
    finetune(args, LoRA(dropout=0.1))


def newest_step(out_dir):
    return max((int(path.name.removeprefix("step-")) for path in out_dir.glob("step-*")), default=0)


def assert_every_named_folder_is_whole(out_dir):
    found = [*out_dir.glob("step-*"), *out_dir.glob("best")]
    for folder in found:
        assert load_file(folder / "adapter.safetensors")
        assert json.loads((folder / "adapter.json").read_text())["method"] == "lora"
    for folder in out_dir.glob("step-*"):
        assert load_file(folder / "state.safetensors")["random/0/cpu"].numel()
        assert json.loads((folder / "state.json").read_text())["step"] == int(folder.name.removeprefix("step-"))
    return len(found)


def test_ten_random_kills_end_in_a_bit_identical_result(tmp_path, checkpoint):
    """The moments are drawn: after none to three more saves, some milliseconds that end within a step; or when the next save
    has begun."""
    data_dir = make_data(tmp_path / "data", n_train=38)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lit_llm.training.finetune"])  # so that no run has to import torch again
    draw = random.Random(7)
    out_dir = tmp_path / "killed"
    n_whole = n_in_a_save = 0
    for i in range(10):
        goal, leftovers = newest_step(out_dir) + 2 * draw.randint(0, 3), {*out_dir.glob(".*")}
        process = context.Process(target=long_run, args=(checkpoint, data_dir, out_dir))
        process.start()
        while newest_step(out_dir) < goal and process.is_alive():
            time.sleep(0.001)
        if i % 2:
            while not {*out_dir.glob(".*")} - leftovers and process.is_alive():
                time.sleep(0.0005)
        else:
            time.sleep(draw.uniform(0, 0.04))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended by itself"
        n_whole += assert_every_named_folder_is_whole(out_dir)
        n_in_a_save += bool({*out_dir.glob(".*")} - leftovers)
    assert n_in_a_save > 0, "no kill hit a save"
    assert not (out_dir / "final").exists()
    assert n_whole > 10
    for name in ("killed", "uninterrupted"):
        process = context.Process(target=long_run, args=(checkpoint, data_dir, tmp_path / name))
        process.start()
        process.join()
        assert process.exitcode == 0
    assert same(result(out_dir), result(tmp_path / "uninterrupted"))
    assert metrics(out_dir) == metrics(tmp_path / "uninterrupted")
    assert not list(out_dir.glob(".*")), "what a killed run was writing is removed"


def test_metrics_survive_a_resume_that_fails_while_writing(tmp_path):
    path, rows_ = tmp_path / "metrics.csv", "step,train_loss,of another run\n1,2.5,3\n"
    path.write_text(rows_)
    with pytest.raises(ValueError, match="of another run"):
        Metrics(path, (), read_rows(path))
    assert path.read_text() == rows_


# Every method, from the middle of an epoch


METHODS = {
    "full": (FullFinetuneArgs, lambda: Full(), {"neftune_alpha": 5.0}),
    "lora": (LoRAFinetuneArgs, lambda: LoRA(dropout=0.1), {}),
    "dora": (LoRAFinetuneArgs, lambda: LoRA(dropout=0.1, use_dora=True, targets="all-linear"), {"packing": False}),
    "adapter": (AdapterFinetuneArgs, lambda: Adapter(start_layer=0), {"neftune_alpha": 5.0}),
    "adapter_v2": (AdapterV2FinetuneArgs, lambda: AdapterV2(start_layer=0), {"neftune_alpha": 5.0}),
    "dpo": (DPOFinetuneArgs, lambda: DPO(DPOArgs().beta, dropout=0.1), {}),
}
"""Arguments, method, and what makes its training draw random numbers where it has no dropout."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for name, n, seed in (("train", 18, 1), ("val", 4, 2)):
        chosen, rejected = rows(n, seed), rows(n, seed + 10)
        both = zip(chosen, rejected, strict=True)
        found = [{"prompt": a["instruction"], "chosen": a["output"], "rejected": b["output"]} for a, b in both]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in found))
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_resuming_within_an_epoch_ends_bit_identical(tmp_path, checkpoint, data_dir, pairs, name):
    """Saved at step 3 of 5 an epoch. The stream of random numbers goes on where it was: with another one, the end differs."""
    kind, method, options = METHODS[name]

    def go(resume):
        train = TrainArgs(
            epochs=2, global_batch_size=4, micro_batch_size=2, learning_rate=1e-2, save_interval=3, probe=False, **options
        )
        args = kind(
            checkpoint_dir=checkpoint, data_dir=pairs if name == "dpo" else data_dir, out_dir=tmp_path / "run", train=train,
            accelerator="cpu", resume=resume, eval=EvalArgs(interval=2, samples=0),
        )  # fmt: skip
        finetune(args, method())
        return result(tmp_path / "run"), metrics(tmp_path / "run")

    weights, shown = go(None)
    assert [row["step"] for row in shown] == [str(i) for i in range(11)]
    save = tmp_path / "run" / "step-000003"
    again, shown_again = go(str(save))
    assert same(again, weights)
    assert shown_again == shown

    state = load_file(save / "state.safetensors")
    state["random/0/cpu"] = torch.Generator().manual_seed(99).get_state()
    save_file(state, save / "state.safetensors")
    assert not same(go(str(save))[0], weights), "nothing random is in this run: the test shows nothing about its stream"


# What is in the folder when a run is to go on


@pytest.fixture
def go(tmp_path, checkpoint, data_dir):
    """Finetune into `tmp_path`/run: 20 examples in steps of 4."""

    def run(resume=None, r=8, data_dir=data_dir, interval=None, name="run", **train):
        train = {"global_batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-2, "probe": False, **train}
        args = LoRAFinetuneArgs(
            checkpoint_dir=checkpoint, data_dir=data_dir, out_dir=tmp_path / name, train=TrainArgs(**train), accelerator="cpu",
            resume=resume, eval=EvalArgs(interval=interval, final=False, samples=0), lora=LoRAArgs(r=r),
        )  # fmt: skip
        finetune(args, LoRA(r=r))
        return tmp_path / name

    return run


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("save_interval", [None, 2])
def test_a_finished_run_is_neither_trained_again_nor_overwritten(go, capsys, save_interval):
    out_dir = go(save_interval=save_interval)
    before = content(out_dir)
    go("auto", save_interval=save_interval)
    assert "already finished" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"started with another `lora\.r`\. .*choose another `out_dir`"):
        go("auto", r=2, save_interval=save_interval)
    with pytest.raises(ValueError, match=r"is finished, with another `train\.max_time`"):
        go("auto", max_time=1.0, epochs=1, save_interval=save_interval)
    assert content(out_dir) == before


@pytest.mark.parametrize("name", ["final/adapter.safetensors", "notes.txt", "args.yaml"])
def test_a_folder_that_never_was_a_run_stays_as_it_is(go, tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("of someone else")
    for resume in (None, "auto"):
        with pytest.raises(ValueError, match=r"[Cc]hoose another `out_dir`"):
            go(resume)
    assert content(tmp_path / "run") == {path.relative_to(tmp_path / "run"): b"of someone else"}


def test_a_run_that_was_killed_before_its_report_gets_one(go):
    out_dir = go(save_interval=2)
    expected = result(out_dir)
    (out_dir / "report.html").unlink()
    go("auto", save_interval=2)
    assert (out_dir / "report.html").is_file()
    assert same(result(out_dir), expected)


def test_a_run_killed_before_its_first_save_restarts(go, capsys):
    """With other options, too, as when memory ran out: nothing is lost."""
    out_dir = go()
    expected, rows_ = result(out_dir), metrics(out_dir)
    shutil.rmtree(out_dir / "final")
    (out_dir / ".new-final-0123abcd").mkdir()
    go("auto", r=2)
    assert "starts again from its first step" in capsys.readouterr().err
    assert yaml.safe_load((out_dir / "args.yaml").read_text())["lora"]["r"] == 2
    shutil.rmtree(out_dir / "final")
    go("auto")
    assert same(result(out_dir), expected)
    assert metrics(out_dir) == rows_
    assert not list(out_dir.glob(".*"))


def test_a_save_of_other_training_data_is_refused(go, tmp_path, data_dir):
    data_dir = shutil.copytree(data_dir, tmp_path / "data")
    out_dir = go(data_dir=data_dir, save_interval=2)
    shutil.rmtree(out_dir / "final")
    before, path = content(out_dir), data_dir / "train.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for other in ([*lines[1:], lines[0]], lines[:12]):
        path.write_text("".join(other))
        with pytest.raises(ValueError, match=r"has changed.*trained on 20 examples.*choose another `out_dir`"):
            go("auto", data_dir=data_dir, save_interval=2)
        assert content(out_dir) == before
    path.write_text("".join(lines))
    validation = data_dir / "val.jsonl"
    validation.write_text("".join(validation.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match=r"has changed.*was validated on other examples.*choose another `out_dir`"):
        go("auto", data_dir=data_dir, save_interval=2)
    path.write_text("".join(lines[:12]))
    state = json.loads((out_dir / "step-000004" / "state.json").read_text())
    assert state.pop("data")["n_examples"] == 20
    (out_dir / "step-000004" / "state.json").write_text(json.dumps(state))
    # A save that does not say what it was trained on. Step 4 is beyond the 3 steps of now.
    go("auto", data_dir=data_dir, save_interval=2)
    assert (out_dir / "final").is_dir()


def test_what_was_saved_after_a_given_save_is_set_aside(go, capsys):
    """Then the run is killed in its fifth step: it goes on from the fourth, not from the sixth or eighth of the first time."""
    options = {"epochs": 2, "max_steps": 10, "save_interval": 2}
    out_dir = go(**options)
    old = content(out_dir)
    first = str(out_dir / "step-000002")
    go(first, **options, keep_last=1)
    assert [path.name for path in out_dir.glob("step-*")] == ["step-000008"]
    aside = out_dir / "abandoned-1"
    assert f"are now in {aside}: final, step-000008, step-000006, step-000004, report.html, loss.png" in capsys.readouterr().err
    moved = ("step-000004", "step-000006", "step-000008", "final", "report.html", "loss.png", "metrics.csv")
    assert content(aside) == {path: text for path, text in old.items() if path.parts[0] in moved}
    go(str(out_dir / "step-000008"), **options)
    assert not list((out_dir / "abandoned-2").glob("step-*"))
    with pytest.raises(FileNotFoundError, match="must be a save of the run in `out_dir`"):
        go(str(aside / "step-000004"), **options)


def test_best_is_set_aside_with_the_steps_that_found_it(go):
    """A run that goes on from a save, and ends there, has no better model than it had then; the next that it validates is."""
    options = {"epochs": 2, "max_steps": 10, "save_interval": 2, "interval": 2}
    out_dir = go(**options)
    losses = [(float(row["val_loss"]), int(row["step"])) for row in metrics(out_dir) if row["val_loss"]]
    assert min(losses)[1] > 2
    best, first = content(out_dir / "best"), str(out_dir / "step-000002")
    go(first, **options, max_time=1e-9)
    assert content(out_dir / "abandoned-1" / "best") == best
    assert not (out_dir / "best").exists()
    assert metrics(out_dir)[-1]["step"] == "2"
    assert metrics(out_dir / "abandoned-1")[-1]["step"] == "10"
    with pytest.raises(ValueError, match=r"is finished, with another `train\.max_time`"):  # than this time
        go("auto", **options)
    go("auto", **options, max_time=1e-9)
    go(first, **options)
    assert content(out_dir / "best") == best
    (out_dir / "metrics.csv").unlink()
    go(first, **options)
    assert content(out_dir / "best") == best


def test_what_an_attempt_without_a_save_left_is_set_aside(go):
    out_dir = go(interval=2)
    best = content(out_dir / "best")
    shutil.rmtree(out_dir / "final")
    go("auto", r=2)
    assert content(out_dir / "abandoned-1" / "best") == best
    assert not (out_dir / "best").exists()


@pytest.mark.parametrize(("held_loss", "moves"), [(None, True), (3.0, True), (1.0, False)])
def test_best_is_known_by_what_it_holds(tmp_path, held_loss, moves):
    """After a resume from before the best model a worse one may have taken its place."""
    for name in ("final", "best"):
        (tmp_path / name).mkdir()
    (tmp_path / "report.html").touch()
    (tmp_path / "metrics.csv").write_text("step,val_loss\n2,1.0\n4,\n6,2.0\n")
    RunFolder(tmp_path).set_aside_later(State(step=4, best_val_loss=1.0, held_loss=held_loss))
    assert (tmp_path / "abandoned-1" / "final").is_dir()
    assert (tmp_path / "abandoned-1" / "best").is_dir() is moves
    assert (tmp_path / "best").is_dir() is not moves


def test_a_run_may_be_moved(go, tmp_path):
    out_dir = go(save_interval=2)
    expected = result(out_dir)
    shutil.rmtree(out_dir / "final")
    out_dir.rename(tmp_path / "moved")
    assert same(result(go("auto", save_interval=2, name="moved")), expected)


@pytest.mark.parametrize("text", [": : [", "train: 3", "a list", "\x00"])
def test_options_that_cannot_be_read_are_refused(go, text):
    out_dir = go(save_interval=2)
    (out_dir / "args.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"args\.yaml does not hold the options of a run"):
        go("auto", save_interval=2)


@pytest.mark.parametrize("text", [None, "[]", '{"python":'])
def test_a_lost_environment_costs_no_result(go, text):
    """The report names it at the end of a run, when all else is written."""
    out_dir = go(save_interval=2)
    expected, path = result(out_dir), out_dir / "environment.json"
    shutil.rmtree(out_dir / "final")
    (out_dir / "report.html").unlink()
    path.unlink() if text is None else path.write_text(text)
    if text is not None:
        with pytest.raises(CheckpointError, match=r"environment\.json .*Delete it, and resume the run"):
            go("auto", save_interval=2)
        path.unlink()
    go("auto", save_interval=2)
    assert same(result(out_dir), expected)
    assert "torch" in json.loads(path.read_text())["versions"]


# What may have happened to the files of a run


def edit_state(save, change):
    path = save / "state.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))


def keep(path, n_bytes):
    path.write_bytes(path.read_bytes()[:n_bytes])


DAMAGES = {
    "no state.json": (lambda s: (s / "state.json").unlink(), "is damaged"),
    "state.json torn": (lambda s: keep(s / "state.json", 40), "is not valid JSON"),
    "state.json empty": (lambda s: keep(s / "state.json", 0), "is not valid JSON"),
    "state.json a list": (lambda s: (s / "state.json").write_text("[1]"), "must be an object"),
    "no seconds": (lambda s: edit_state(s, lambda state: state.pop("seconds")), "seconds is missing"),
    "step a string": (lambda s: edit_state(s, lambda state: state.update(step="4")), "step must be an integer"),
    "data a list": (lambda s: edit_state(s, lambda state: state.update(data=[1])), "data must be an object or null"),
    "loss infinite": (
        lambda s: edit_state(s, lambda state: state.update(mean_loss=float("inf"))),
        "must be a finite",
    ),
    "other step": (lambda s: edit_state(s, lambda state: state.update(step=2)), "holds step 2"),
    "no state.safetensors": (lambda s: (s / "state.safetensors").unlink(), "is damaged"),
    "state.safetensors torn": (lambda s: keep(s / "state.safetensors", 1000), "is damaged"),
    "state.safetensors empty": (lambda s: keep(s / "state.safetensors", 0), "is damaged"),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory, checkpoint, data_dir):
    """A run that was killed after its save of step 4, with another of step 2; and the options that resume it."""
    from types import SimpleNamespace

    out_dir = tmp_path_factory.mktemp("killed") / "run"
    train = TrainArgs(max_steps=5, global_batch_size=4, micro_batch_size=4, learning_rate=1e-2, probe=False, save_interval=2)
    options = {"checkpoint_dir": checkpoint, "data_dir": data_dir, "train": train, "accelerator": "cpu"}

    def go(out_dir, resume=None):
        finetune(LoRAFinetuneArgs(out_dir=out_dir, resume=resume, eval=EvalArgs(interval=2, samples=0), **options), LoRA())

    go(out_dir)
    expected = result(out_dir), metrics(out_dir)
    shutil.rmtree(out_dir / "final")
    (out_dir / "report.html").unlink()
    return SimpleNamespace(out_dir=out_dir, expected=expected, go=go)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_save_names_the_one_before(killed, tmp_path, damage):
    change, message = DAMAGES[damage]
    out_dir = shutil.copytree(killed.out_dir, tmp_path / "run")
    change(out_dir / "step-000004")
    before = content(out_dir)
    with pytest.raises(ValueError, match=message) as refused:
        killed.go(out_dir, "auto")
    assert str(refused.value).endswith(f"The same command with `resume` {out_dir}/step-000002 resumes from the save before it")
    assert content(out_dir) == before


def test_the_named_save_resumes_and_the_first_has_none_before(killed, tmp_path):
    out_dir = shutil.copytree(killed.out_dir, tmp_path / "run")
    keep(out_dir / "step-000004" / "state.json", 40)
    killed.go(out_dir, str(out_dir / "step-000002"))
    assert same(result(out_dir), killed.expected[0])
    assert metrics(out_dir) == killed.expected[1]
    shutil.rmtree(out_dir / "step-000004")
    shutil.rmtree(out_dir / "final")
    keep(out_dir / "step-000002" / "state.json", 40)
    with pytest.raises(ValueError, match=r"It is the first save\. Remove it, and use `resume` auto to start again"):
        killed.go(out_dir, "auto")


@pytest.mark.parametrize("damage", ["missing", "empty", "torn in a row", "torn in a number", "zeros", "bytes"])
def test_rows_of_metrics_come_from_the_save(killed, tmp_path, damage):
    out_dir = shutil.copytree(killed.out_dir, tmp_path / "run")
    path = out_dir / "metrics.csv"
    text = path.read_bytes()
    fourth = text.index(b"\n4,") + 1
    path.write_bytes(
        {"empty": b"", "torn in a row": text[: fourth + 12], "torn in a number": text[: text.index(b"\r\n", fourth) - 1],
         "zeros": text[:fourth] + bytes(200), "bytes": b"\xff\xfe\x00" + text}.get(damage, text)
    )  # fmt: skip
    if damage == "missing":
        path.unlink()
    killed.go(out_dir, "auto")
    assert metrics(out_dir) == killed.expected[1]


def test_rows_that_are_lost_are_named(killed, tmp_path, capsys):
    """A save of an older version has no copy of them."""
    out_dir = shutil.copytree(killed.out_dir, tmp_path / "run")
    (out_dir / "step-000004" / "metrics.csv").unlink()
    text = (out_dir / "metrics.csv").read_bytes()
    (out_dir / "metrics.csv").write_bytes(text[: text.index(b"\n3,") + 9])
    killed.go(out_dir, "auto")
    assert f"warning: the rows of {out_dir}/metrics.csv end at step 2, before step 4" in capsys.readouterr().err
    assert [row["step"] for row in metrics(out_dir)] == ["0", "1", "2", "5"]


@pytest.mark.parametrize("name", ["step-000004 (copy)", "step-000004.bak", "step-last"])
def test_a_folder_that_only_looks_like_a_save_is_ignored(killed, tmp_path, name):
    out_dir = shutil.copytree(killed.out_dir, tmp_path / "run")
    shutil.copytree(out_dir / "step-000002", out_dir / name)
    killed.go(out_dir, "auto")
    assert same(result(out_dir), killed.expected[0])
    with pytest.raises(FileNotFoundError, match="is not a save of a run, a folder like step-000100"):
        killed.go(out_dir, str(out_dir / name))


def test_a_run_killed_before_its_first_file_starts(killed, tmp_path):
    """Only what a killed program leaves is in its folder."""
    out_dir = tmp_path / "run"
    out_dir.mkdir()
    (out_dir / ".lock").write_text("process 1 on nowhere")
    (out_dir / ".new-args.yaml-0123abcd").write_text("checkp")
    killed.go(out_dir)
    assert same(result(out_dir), killed.expected[0])
    assert not list(out_dir.glob(".*"))
