"""Loggers beside metrics.csv: TensorBoard's own reader finds the rows, and what is missing is told."""

import csv

import pytest

from lit_llm.args.finetune import EvalArgs, LoRAFinetuneArgs, TrainArgs
from lit_llm.methods.lora import LoRA
from lit_llm.training.finetune import finetune
from lit_llm.training.metrics import check_logger


def test_tensorboard_has_the_rows_of_metrics_csv_after_resuming(tmp_path, checkpoint, data_dir):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def go(resume):
        args = LoRAFinetuneArgs(
            checkpoint_dir=checkpoint, data_dir=data_dir, out_dir=tmp_path / "run", accelerator="cpu", logger="tensorboard",
            resume=resume, eval=EvalArgs(samples=0, interval=None),
            train=TrainArgs(global_batch_size=4, save_interval=2, probe=False),
        )  # fmt: skip
        finetune(args, LoRA())
        with (tmp_path / "run" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
        for column in ("train_loss", "val_loss", "learning_rate", "tokens_per_second"):
            expected = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
            found = [(event.step, event.value) for event in events.Scalars(column)]
            assert [step for step, _ in found] == [step for step, _ in expected]
            assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)

    go(None)
    go(str(tmp_path / "run" / "step-000004"))  # from 4 of 5 steps: the last one is made and logged again, and shown once


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_named_with_what_installs_it(monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(ValueError, match=f"pip install {name}"):
        check_logger(name)
    check_logger("csv")
