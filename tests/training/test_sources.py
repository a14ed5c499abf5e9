"""Runs on several sources: counts and losses of each, and a resume in the middle."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_data, rows

from lit_llm.args.finetune import EvalArgs, LoRAFinetuneArgs, TrainArgs
from lit_llm.errors import OptionError
from lit_llm.training.finetune import finetune


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two data folders and a file: 12, 20 and 8 rows to train on; the file has no rows to validate on."""
    folder = tmp_path_factory.mktemp("sources")
    make_data(folder / "small", 12, 3)
    make_data(folder / "large", 20, 5)
    make_data(folder / "only", 8, 1)
    (folder / "only/val.jsonl").unlink()
    return folder


def train(checkpoint, data_dir, out_dir, resume=None, **train):
    train = TrainArgs(**{"max_steps": 9, "global_batch_size": 8, "log_interval": 1, **train})
    paths = {"checkpoint_dir": checkpoint, "data_dir": Path(data_dir), "out_dir": out_dir, "resume": resume}
    return finetune(LoRAFinetuneArgs(**paths, prompt_style="alpaca", train=train, eval=EvalArgs(interval=3, samples=0)))


def rows_of(out_dir):
    with (out_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_each_source_is_counted_and_validated(checkpoint, sources, tmp_path, capsys):
    mixture = f"{sources / 'small'}:0.5,{sources / 'large'},{sources / 'only'}:0.1"
    train(checkpoint, mixture, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert "small           12 examples, an epoch draws 20 (1.67 times each)" in capsys.readouterr().err
    drawn = [[int(row[f"examples_{name}"]) for name in ("small", "large", "only")] for row in rows if row["train_loss"]]
    assert [sum(counts) for counts in drawn] == [8 * step for step in range(1, 10)]
    assert drawn[4] == [20, 16, 4]  # an epoch: half, what is left, and a tenth of 40
    last = rows[-1]
    small, large = float(last["val_loss_small"]), float(last["val_loss_large"])
    assert min(small, large) < float(last["val_loss"]) < max(small, large)
    assert "val_loss_only" not in last
    report = (tmp_path / "run/report.html").read_text()
    assert (
        f"small: {drawn[-1][0]} examples drawn, validation loss {float(rows[0]['val_loss_small']):.4f} -&gt; {small:.4f}"
        in report
    )
    assert f"only: {drawn[-1][2]} examples drawn</li>" in report


def test_the_loss_of_a_source_is_that_of_a_run_on_it_alone(checkpoint, sources, tmp_path):
    """Before the first step, where the models are the same."""
    train(checkpoint, f"{sources / 'small'},{sources / 'large'}", tmp_path / "both", max_steps=1)
    first = rows_of(tmp_path / "both")[0]
    for name in ("small", "large"):
        train(checkpoint, sources / name, tmp_path / name, max_steps=1)
        alone = rows_of(tmp_path / name)[0]
        assert float(first[f"val_loss_{name}"]) == pytest.approx(float(alone["val_loss"]), rel=1e-6)
        assert [column for column in alone if column.startswith("examples_")] == []


def test_a_mixture_resumes_as_if_it_had_never_stopped(checkpoint, sources, tmp_path):
    mixture = f"{sources / 'small'}:0.6,{sources / 'large'}"
    train(checkpoint, mixture, tmp_path / "whole", save_interval=7)
    train(checkpoint, mixture, tmp_path / "again", save_interval=7)
    (tmp_path / "again/final/adapter.safetensors").unlink()
    train(checkpoint, mixture, tmp_path / "again", save_interval=7, resume=str(tmp_path / "again/step-000007"))
    one, two = (load_file(tmp_path / name / "final/adapter.safetensors") for name in ("whole", "again"))
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    columns = ("step", "train_loss", "val_loss", "examples_small", "examples_large", "val_loss_small")
    whole, again = ([[row[name] for name in columns] for row in rows_of(tmp_path / name)] for name in ("whole", "again"))
    assert whole == again


def test_overfitting_on_a_mixture_is_refused(checkpoint, sources, tmp_path):
    with pytest.raises(OptionError, match=r"`train\.overfit_batches` needs one `data_dir`"):
        train(checkpoint, f"{sources / 'small'},{sources / 'large'}", tmp_path / "run", overfit_batches=1)


def test_a_pattern_and_a_folder_of_shards_are_prepared_first(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    for number in range(2):
        text = "".join(json.dumps(row) + "\n" for row in rows(6, seed=number))
        (tmp_path / f"shards/part-{number}.jsonl").write_text(text)
    (tmp_path / "one.csv").write_text("instruction,output\n" + "".join(f"the cat {n},the dog {n}\n" for n in range(4)))
    for name, data_dir in (("pattern", "shards/*.jsonl:0.5,one.csv"), ("folder", "shards:0.5,one.csv")):
        train(checkpoint, data_dir, tmp_path / name, max_steps=1)
        assert "examples_shards" in rows_of(tmp_path / name)[0]
    first, second = (load_file(tmp_path / name / "final/adapter.safetensors") for name in ("pattern", "folder"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_checkpoint_is_not_taken_for_rows(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train.jsonl does not exist. Write it with a prepare script"):
        train(checkpoint, checkpoint, tmp_path / "run")
