"""Measurements during a run: `metrics.csv`, and the loggers that repeat its rows."""

import csv
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lit_llm.errors import OptionError

if TYPE_CHECKING:
    from lightning.fabric.loggers.logger import Logger

COLUMNS: tuple[str, ...] = (
    "step", "epoch", "train_loss", "val_loss", "learning_rate", "grad_norm", "trained_tokens", "tokens_per_second",
    "peak_memory_gb", "seconds",
)  # fmt: skip


class Metrics:
    """Rows of `metrics.csv`, and of the loggers; a cell without a measurement is empty."""

    def __init__(
        self,
        path: Path | None,
        more_columns: Sequence[str],
        rows: Sequence[dict[str, str]] = (),
        loggers: "Sequence[Logger]" = (),
    ) -> None:
        """Start the file.

        Args:
            path: None on all ranks except one: nothing is written then.
            rows: The first rows, of a run that is resumed.
        """
        self._file: IO[str] | None = None
        if path is None:
            return
        unfinished = path.with_name(f".{path.name}")  # a run that is killed here keeps its rows
        self._file = unfinished.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, (*COLUMNS, *more_columns))
        self._writer.writeheader()
        self._writer.writerows(rows)
        self._file.flush()
        unfinished.replace(path)
        self._loggers = loggers

    def write(self, **values: Any) -> None:
        if self._file is None:
            return
        cells = {name: f"{value:.9g}" if isinstance(value, float) else value for name, value in values.items()}
        self._writer.writerow(cells)
        self._file.flush()
        step = values.pop("step")
        for logger in self._loggers:
            logger.log_metrics(values, step)

    def close(self) -> None:
        if self._file is None:
            return
        self._file.close()
        for logger in self._loggers:
            logger.finalize("success")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a `metrics.csv` that are complete: the last one may be torn after the machine went down."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = text[: text.rfind("\n") + 1].replace("\0", "").splitlines()
    rows = csv.DictReader(lines, strict=False)
    return [row for row in rows if None not in (*row, *row.values()) and row.get("step", "").isdecimal()]


def check_logger(name: str) -> None:
    """Raise ValueError if the package of the logger is not installed."""
    if name != "csv" and importlib.util.find_spec(name) is None:
        raise OptionError(f"`logger` {name} needs a package that is not installed: pip install {name}")


def make_loggers(name: str, out_dir: Path, resume_step: int | None) -> "list[Logger]":
    """Return the logger that also gets the rows of `metrics.csv`, if any. Its files are in `out_dir`.

    Args:
        resume_step: TensorBoard drops its rows of later steps, which will be repeated.
    """
    if name == "tensorboard":
        from lightning.fabric.loggers.tensorboard import TensorBoardLogger

        purge_step = None if resume_step is None else resume_step + 1
        return [TensorBoardLogger(out_dir, name="tensorboard", version="", purge_step=purge_step)]
    if name == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        return [WandbLogger(project="lit_llm", name=out_dir.name, save_dir=out_dir)]
    if name == "mlflow":
        from lightning.pytorch.loggers import MLFlowLogger

        return [MLFlowLogger(experiment_name="lit_llm", run_name=out_dir.name, save_dir=str(out_dir / "mlruns"))]
    return []
