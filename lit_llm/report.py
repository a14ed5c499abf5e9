"""What a run tells while it goes on: `metrics.csv`, and a progress bar or, without a terminal, plain lines."""

import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from lightning.fabric.loggers.logger import Logger

COLUMNS: tuple[str, ...] = (
    "step", "epoch", "train_loss", "val_loss", "learning_rate", "grad_norm", "trained_tokens", "tokens_per_second",
    "peak_memory_gb", "seconds",
)  # fmt: skip


class Metrics:
    """Rows of `metrics.csv`, and of the loggers asked for; a cell is empty where nothing was measured."""

    def __init__(
        self, path: Path | None, more_columns: Sequence[str], resume_step: int | None, loggers: "Sequence[Logger]" = ()
    ) -> None:
        """Start the file, or keep the rows up to `resume_step`: those after it are of steps that will be made again.

        Without a path nothing is written, as on all ranks but one.
        """
        self._file: IO[str] | None = None
        if path is None:
            return
        rows: list[dict[str, str]] = []
        if resume_step is not None and path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= resume_step]
        unfinished = path.with_name(f".{path.name}")  # a run that is killed here keeps the rows that it had
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


class Progress:
    """A bar over `total` on a terminal; elsewhere a line now and then. Both go to stderr."""

    SECONDS_BETWEEN_LINES = 10

    def __init__(self, what: str, total: int | None, done: int = 0) -> None:
        self.what, self.total, self.done, self._first = what, total, done, done
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm(total=total, initial=done, desc=what, dynamic_ncols=True) if sys.stderr.isatty() else None

    def update(self, n: int = 1, **shown: str) -> None:
        self.done += n
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(n)
            return
        now = time.monotonic()
        if now - self._last_line >= self.SECONDS_BETWEEN_LINES or self.done == self.total:
            self._last_line = now
            left = ""
            if self.total is not None:
                seconds = (now - self._start) / (self.done - self._first) * (self.total - self.done)
                left = f"/{self.total}, {seconds:.0f} s left"
            print(f"{self.what} {self.done}{left}", *(f"{k} {v}" for k, v in shown.items()), sep="  ", file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
