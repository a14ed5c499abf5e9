"""The folder of a run: what is in it, and from which save the run in it can be resumed."""

import dataclasses
import json
import platform
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from lit_llm.args.finetune import FinetuneArgs
from lit_llm.errors import CheckpointError, DataError, OptionError
from lit_llm.files import holds_files, remove_folder, remove_leftovers, write_json, write_whole
from lit_llm.ranks import n_ranks, rank
from lit_llm.training.metrics import read_rows
from lit_llm.training.run import Run
from lit_llm.training.saves import State, machine, read_save

if TYPE_CHECKING:
    from lightning.fabric.loggers.logger import Logger

# Options that may differ between a run and its resumption, besides those of `eval`.
_FREE = (
    "out_dir", "resume", "dry_run", "logger", "devices", "num_nodes", "strategy", "cpu_offload", "train.max_time",
    "train.save_interval", "train.log_interval", "train.keep_last", "train.probe",
)  # fmt: skip

_SAVE = re.compile(r"step-\d+")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folder of a run: its files by name, and the save that the run resumes from."""

    path: Path
    resume_dir: Path | None = None
    """None for a run from its first step."""

    @classmethod
    def open(cls, args: FinetuneArgs) -> "RunFolder":
        """Return the folder at `args.out_dir`, with the save that `args.resume` asks for.

        Raises:
            ValueError: if it holds something else than a run with these options, or one that is not to be resumed.
            FileNotFoundError: if `args.resume` is not a save of the run in it.
        """
        assert args.out_dir is not None
        folder = cls(args.out_dir)
        path, status = folder.path, folder.status
        if status == "foreign":
            raise OptionError(f"{path} is not the folder of a run: it has no args.yaml. Choose another `out_dir`")
        if status != "fresh" and args.resume is None:
            raise OptionError(f"{path} already holds a run. Use `resume` auto to resume it, or choose another `out_dir`")
        given = None if args.resume in (None, "auto") else Path(args.resume)
        if given is not None and not (given.is_dir() and _SAVE.fullmatch(given.resolve().name)):
            raise FileNotFoundError(f"`resume` {given} is not a save of a run, a folder like step-000100. Try `resume` auto")
        if given is not None and (status == "fresh" or given.resolve().parent != path.resolve()):
            raise FileNotFoundError(f"`resume` {given} must be a save of the run in `out_dir`, which is {path}")
        if status == "fresh":
            return folder
        options = folder.read_options()
        if status == "started":  # nothing is lost if other options are tried
            print(f"{path} has no save yet: the run starts again from its first step", file=sys.stderr)
            return folder
        folder.check_same_run(args, options)
        if status == "finished" and given is None:
            return folder
        resume_dir = given or folder.saves[-1]
        saved, now = folder.read_save(resume_dir), machine(args.devices * args.num_nodes)
        if different := [name for name, value in now.items() if saved.get(name) != value]:
            names = " and ".join(different)
            print(f"warning: {names} differ from the run that saved: the result will not be bit-identical", file=sys.stderr)
        print(f"resuming from {resume_dir}", file=sys.stderr)
        return cls(path, resume_dir)

    @property
    def status(self) -> Literal["foreign", "fresh", "started", "saved", "finished"]:
        """Contents of the folder: something else, nothing, a run without a save, with saves, or with its result and report."""
        if not (self.path / "args.yaml").is_file():
            return "foreign" if self.path.is_file() or holds_files(self.path) else "fresh"
        # The report is written last. Without it the end of a run is repeated, if there is a save to resume from.
        if self.final.is_dir() and ((self.path / "report.html").is_file() or not self.saves):
            return "finished"
        return "saved" if self.saves else "started"

    @property
    def final(self) -> Path:
        return self.path / "final"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def saves(self) -> list[Path]:
        """Complete saves, oldest first."""
        return sorted((path for path in self.path.glob("step-*") if _SAVE.fullmatch(path.name)), key=_step_of)

    @property
    def resume_step(self) -> int | None:
        return None if self.resume_dir is None else _step_of(self.resume_dir)

    def start(self, args: FinetuneArgs, loggers: "Sequence[Logger]" = ()) -> None:
        """Write the files that describe the run, on rank 0, and remove what a killed program left.

        Args:
            loggers: They get the options of a run that starts.
        """
        if rank() > 0:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        options = yaml.safe_dump({**as_yaml(args), "resume": None}, sort_keys=False, allow_unicode=True)
        write_whole(self.path / "args.yaml", options)
        if self.resume_dir is None or not self.environment.is_file():
            names = ("torch", "lightning", "tokenizers", "safetensors", "bitsandbytes")
            system = {"python": platform.python_version(), "platform": platform.platform()}
            about = {**system, **machine(n_ranks()), "versions": {name: version(name) for name in names}}
            write_json(self.environment, about)
        if self.resume_dir is None:
            for logger in loggers:
                logger.log_hyperparams(as_yaml(args))
        remove_leftovers(self.path)

    def result(self, **answers: Any) -> Run:
        """Return the `Run` in this folder, with the files that exist."""
        found = {name: path for name in ("metrics", "best", "final") if (path := getattr(self, name)).exists()}
        return Run(self.path, **found, **answers)

    def read_options(self) -> dict[str, Any]:
        """Return the contents of `args.yaml`."""
        options = None
        with suppress(yaml.YAMLError, UnicodeDecodeError):
            options = yaml.safe_load((self.path / "args.yaml").read_text(encoding="utf-8"))
        if not isinstance(options, dict) or not isinstance(options.get("train"), dict):
            raise OptionError(f"{self.path}/args.yaml does not hold the options of a run. Choose another `out_dir`")
        return options

    def check_same_run(self, args: FinetuneArgs, saved: dict[str, Any]) -> None:
        """Raise ValueError if an option differs that changes the result, or the time limit of a finished run."""
        options, saved = _by_flag(as_yaml(args)), _by_flag(saved)
        changed = [name for name in options if options[name] != saved.get(name)]
        if kept := [name for name in changed if name not in _FREE and not name.startswith("eval.")]:
            raise OptionError(
                f"the run in {self.path} was started with another `{'`, `'.join(kept)}`. Use --config {self.path}/args.yaml "
                f"--out_dir {self.path}, or choose another `out_dir`"
            )
        is_done = args.resume == "auto" and self.status == "finished"
        if is_done and "train.max_time" in changed:
            raise OptionError(
                f"the run in {self.path} is finished, with another `train.max_time`. To resume from one of its saves, give its "
                "path as `resume`; or choose another `out_dir`"
            )

    def check_same_data(self, data: dict[str, Any], data_dir: Path) -> None:
        """Raise ValueError if the examples differ from those that the save was trained on, or validated on."""
        if self.resume_dir is None:
            return
        before = self.read_save(self.resume_dir)["data"] or {}  # saves of older versions say less
        changed = [name for name, value in before.items() if value != data.get(name)]
        if not changed:
            return
        difference = (
            "was validated on other examples"
            if changed == ["validation"]
            else f"was trained on {before.get('n_examples')} examples, which differ from the {data['n_examples']} of now"
        )
        raise DataError(
            f"{data_dir} has changed: {self.resume_dir} {difference}. Restore the old data or its tokenizer, or choose another "
            "`out_dir`"
        )

    def read_save(self, save: Path) -> dict[str, Any]:
        """Return what `read_save` does. Its message names the save to resume from instead."""
        earlier = [other for other in self.saves if _step_of(other) < _step_of(save)]
        advice = "It is the first save. Remove it, and use `resume` auto to start again"
        if earlier:
            advice = f"The same command with `resume` {earlier[-1]} resumes from the save before it"
        saved = read_save(save, advice)
        if saved["step"] != _step_of(save):
            raise CheckpointError(f"{save} holds step {saved['step']}. {advice}")
        return saved

    def rows_so_far(self) -> list[dict[str, str]]:
        """Return the rows of `metrics.csv` up to the save that the run resumes from, which has a copy."""
        if self.resume_dir is None or self.resume_step is None:
            return []
        copy = self.resume_dir / self.metrics.name
        rows = read_rows(copy if copy.is_file() else self.metrics)  # saves of older versions have none
        rows = [row for row in rows if int(row["step"]) <= self.resume_step]
        if not rows or int(rows[-1]["step"]) < self.resume_step:
            last = f"end at step {rows[-1]['step']}" if rows else "are missing"
            print(f"warning: the rows of {self.metrics} {last}, before step {self.resume_step}", file=sys.stderr)
        return rows

    def set_aside_later(self, state: State) -> None:
        """Move what the run wrote after `state` to `abandoned-1`, or the first number that is free.

        The newest save moves first, so that at every moment the rest is a run up to some step. Nothing moves for a run that
        resumes from its newest save.
        """
        later = [save for save in reversed(self.saves) if _step_of(save) > state.step]
        if self.final.is_dir() and (later or (self.path / "report.html").is_file()):  # else killed, and replaced by its equal
            later.insert(0, self.final)
        about = [path for path in (self.path / "report.html", self.path / "loss.png") if path.is_file()]
        if self.best.is_dir() and self._best_is_later(state):
            about.append(self.best)
        if not later and not (about and state.step == 0):
            return
        aside = next(path for i in count(1) if not (path := self.path / f"abandoned-{i}").exists())
        aside.mkdir()
        if self.metrics.is_file():
            (aside / "metrics.csv").write_bytes(self.metrics.read_bytes())
        for path in [*about, *later]:
            path.rename(aside / path.name)
        names = ", ".join(path.name for path in [*later, *about])
        print(f"files written after step {state.step} are now in {aside}: {names}", file=sys.stderr)

    def _best_is_later(self, state: State) -> bool:
        """Return True if the model in `best` was found after `state`."""
        if state.held_loss is None or not self.metrics.is_file():
            return state.held_loss is None
        rows = [row for row in read_rows(self.metrics) if row["val_loss"] and int(row["step"]) > state.step]
        return min((float(row["val_loss"]) for row in rows), default=state.held_loss) < state.held_loss

    def remove_old_saves(self, n_kept: int) -> None:
        """Remove all saves except the newest `n_kept`."""
        for save in self.saves[:-n_kept]:
            remove_folder(save)


def as_yaml(args: FinetuneArgs) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(args), default=str))


def _by_flag(options: dict[str, Any]) -> dict[str, Any]:
    """Options by the names of their flags, as in `lora.r`; folders resolved."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        found |= {f"{name}.{n}": v for n, v in value.items()} if isinstance(value, dict) else {name: value}
    return found | {n: str(Path(found[n]).resolve()) for n in ("checkpoint_dir", "data_dir", "init_from") if found.get(n)}


def _step_of(save: Path) -> int:
    return int(save.name.removeprefix("step-"))
