"""Folders that one program writes at a time, and what a killed one leaves."""

import errno
import multiprocessing
import os
import shutil
import signal
import time

import pytest

from lit_llm.args.data import PrepareJsonArgs
from lit_llm.args.evaluate import HarnessArgs
from lit_llm.args.finetune import LoRAFinetuneArgs
from lit_llm.args.generate import GenerateArgs
from lit_llm.errors import OptionError
from lit_llm.files import claimed, new_folder, remove_leftovers, unused_folder, write_whole


def claim_and_die(path, in_place):
    with claimed(path, "folder", in_place), new_folder(path / "part" if in_place else path) as folder:
        (folder / "half").touch()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_killed_program_does_not_keep_its_claim(tmp_path, in_place):
    path = tmp_path / "out" / "folder"
    process = multiprocessing.get_context("spawn").Process(target=claim_and_die, args=(path, in_place))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list((tmp_path / "out").rglob(".new-*"))
    with claimed(path, "folder", in_place):
        if in_place:
            remove_leftovers(path)
    assert not [*tmp_path.rglob(".*")]


def test_a_claim_leaves_nothing_behind(tmp_path):
    for in_place in (True, False):
        with claimed(tmp_path / "a" / "b", "folder", in_place):
            assert list((tmp_path / "a").rglob(".lock*"))
        assert not list(tmp_path.iterdir())


def test_an_interrupted_replacement_is_undone(tmp_path):
    """The old folder was renamed, and the new one was not yet."""
    (tmp_path / ".old-rows-0123abcd").mkdir()
    (tmp_path / ".old-rows-0123abcd" / "kept").touch()
    (tmp_path / ".new-rows-0123abcd").mkdir()
    (tmp_path / ".gone-rows-0123abcd").mkdir()
    (tmp_path / ".new-rows-2-0123abcd").mkdir()  # of another folder, and perhaps of a program that runs
    (tmp_path / ".new-mine").mkdir()
    with claimed(tmp_path / "rows", "folder"):
        assert (tmp_path / "rows" / "kept").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new-mine", ".new-rows-2-0123abcd", "rows"]


def test_a_waiting_program_writes_after_the_other(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, order = context.Barrier(3), context.Queue()
    both = [context.Process(target=claim_and_report, args=(tmp_path / "a", barrier, order)) for _ in range(2)]
    for process in both:
        process.start()
    barrier.wait()
    found = [order.get(timeout=60) for _ in range(4)]
    assert found == [found[0], found[0], found[2], found[2]]
    assert found[0] != found[2]


def claim_and_report(path, barrier, order):
    barrier.wait()
    with claimed(path, "folder", wait=True):
        order.put(os.getpid())
        time.sleep(0.2)
        order.put(os.getpid())


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, capsys):
    def flock(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with claimed(tmp_path / "a", "out_dir"):
        pass
    told = capsys.readouterr().err
    assert f"the file system of `out_dir` {tmp_path / 'a'} has no locks (No locks available)" in told


def test_an_interrupted_file_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "args.yaml"
    write_whole(path, "old")

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["args.yaml"]


def finetune(folder, inputs):
    from lit_llm.training.finetune import finetune

    finetune(LoRAFinetuneArgs(checkpoint_dir=inputs["checkpoint"], data_dir=inputs["data"], out_dir=folder, accelerator="cpu"))


def prepare(folder, inputs):
    from lit_llm.data.prepare import prepare_table

    source = inputs["data"] / "train.jsonl"
    prepare_table(PrepareJsonArgs(json_path=str(source), destination_path=folder))


def merge(folder, inputs):
    from lit_llm.checkpoint.merge import merge_adapters

    merge_adapters(inputs["checkpoint"], [inputs["data"]], [1.0], folder)


def convert(folder, inputs):
    from lit_llm.checkpoint.convert import convert

    shutil.copytree(inputs["checkpoint"], folder, dirs_exist_ok=True)
    convert(folder)


def generate(folder, inputs):
    from lit_llm.generation.answer_prompts import continue_prompts

    continue_prompts(GenerateArgs(checkpoint_dir=inputs["checkpoint"], prompt="x", output_file=folder))


def evaluate(folder, inputs):
    from lit_llm.evaluation.harness import evaluate

    evaluate(HarnessArgs(checkpoint_dir=inputs["checkpoint"], tasks=["x"], output_file=folder))


WRITERS = {
    "finetune": (finetune, "out_dir", True),
    "prepare": (prepare, "destination_path", False),
    "merge": (merge, "output_dir", False),
    "convert": (convert, "checkpoint_dir", True),
    "generate": (generate, "output_file", False),
    "evaluate": (evaluate, "output_file", False),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_another_program_writes_is_refused(tmp_path, checkpoint, data_dir, name):
    write, option, in_place = WRITERS[name]
    with (
        claimed(tmp_path / "result", option, in_place),
        pytest.raises(OptionError, match=rf"`{option}` \S+ is being written by process {os.getpid()} on .*Wait until it ends"),
    ):
        write(tmp_path / "result", {"checkpoint": checkpoint, "data": data_dir})


def test_only_an_unused_folder_is_written(tmp_path):
    (tmp_path / "a").mkdir()
    with unused_folder(tmp_path / "a", "output_dir") as folder:
        (folder / "file").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
    with pytest.raises(OptionError, match="already holds files"), unused_folder(tmp_path / "a", "output_dir"):
        pass
    assert os.listdir(tmp_path) == ["a"]
