"""The folder of a run: what it says of the run, and whether the run in it can be gone on with."""

import dataclasses
import json
import platform
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lit_llm.args.finetune import FinetuneArgs
from lit_llm.files import read_json_object, write_json
from lit_llm.ranks import n_ranks
from lit_llm.training.saves import machine, saves


def find_save(args: FinetuneArgs, out_dir: Path) -> Path | None:
    """The save to resume from, None for a run from the first step on.

    Raises:
        ValueError: if `out_dir` holds something else than a run with these options, or one that is not to be resumed.
        FileNotFoundError: if `args.resume` is not a save of the run in `out_dir`.
    """
    started = (out_dir / "args.yaml").is_file()
    if not started and (out_dir.is_file() or (out_dir.is_dir() and any(out_dir.iterdir()))):
        raise ValueError(f"{out_dir} holds something that is not a run: it has no args.yaml. Choose another --out_dir")
    if started and args.resume is None:
        raise ValueError(f"{out_dir} already holds a run. Add --resume auto to go on with it, or choose another --out_dir")
    given = None if args.resume in (None, "auto") else Path(args.resume)
    if given is not None and not (given / "state.json").is_file():
        raise FileNotFoundError(f"--resume {given} is not a save of a run: it has no state.json. Try --resume auto")
    if given is not None and (not started or given.resolve().parent != out_dir.resolve()):
        raise FileNotFoundError(f"--resume {given} must be a save of the run in --out_dir, which is {out_dir}")
    if not started:
        return None
    options = _read_options(out_dir)
    resume_dir = given or next(reversed(saves(out_dir)), None)
    if resume_dir is None and not (out_dir / "final").is_dir():  # nothing is lost if other options are tried
        print(f"{out_dir} holds no save yet: the run starts again from its first step", file=sys.stderr)
        return None
    _check_same_run(args, options, out_dir)
    if is_finished(args, out_dir):
        return None
    if resume_dir is not None:
        _warn_of_another_machine(resume_dir, args.devices * args.num_nodes)
        print(f"resuming from {resume_dir}", file=sys.stderr)
    return resume_dir


def is_finished(args: FinetuneArgs, out_dir: Path) -> bool:
    """Whether nothing is left to do for `--resume auto`. The report is written last; it can be had again from a save only."""
    whole = (out_dir / "report.html").is_file() or not saves(out_dir)
    return args.resume == "auto" and (out_dir / "final").is_dir() and whole


def start_run(args: FinetuneArgs, out_dir: Path) -> None:
    """Make the run folder and write what describes the run."""
    out_dir.mkdir(parents=True, exist_ok=True)
    write_options(args, out_dir)
    versions = {name: version(name) for name in ("torch", "lightning", "tokenizers", "safetensors", "bitsandbytes")}
    about = {"python": platform.python_version(), "platform": platform.platform(), **machine(n_ranks()), "versions": versions}
    write_json(out_dir / "environment.json", about)


def write_options(args: FinetuneArgs, out_dir: Path) -> None:
    """Write `args.yaml`, for a run that begins or goes on."""
    options = {**as_yaml(args), "resume": None}
    (out_dir / "args.yaml").write_text(yaml.safe_dump(options, sort_keys=False, allow_unicode=True), encoding="utf-8")


def as_yaml(args: FinetuneArgs) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(args), default=str))


def _read_options(out_dir: Path) -> dict[str, Any]:
    options = None
    with suppress(yaml.YAMLError, UnicodeDecodeError):
        options = yaml.safe_load((out_dir / "args.yaml").read_text(encoding="utf-8"))
    if not isinstance(options, dict) or not isinstance(options.get("train"), dict):
        raise ValueError(f"{out_dir}/args.yaml does not hold the options of a run. Choose another --out_dir")
    return options


def _check_same_run(args: FinetuneArgs, saved: dict[str, Any], out_dir: Path) -> None:
    """Raises ValueError if an option differs that changes what is trained, or the time of a run that is finished."""
    options = as_yaml(args)
    for given in (options, saved):
        given.update({name: str(Path(given[name]).resolve()) for name in ("checkpoint_dir", "data_dir") if given.get(name)})
    no_matter = ("out_dir", "resume", "dry_run", "logger", "eval", "train", "devices", "num_nodes", "strategy", "cpu_offload")
    changed = [name for name in options if options[name] != saved.get(name) and name not in no_matter]
    free = ("max_time", "save_interval", "log_interval", "keep_last", "probe")
    changed += [f"train.{n}" for n, v in options["train"].items() if v != saved["train"].get(n) and n not in free]
    if changed:
        raise ValueError(
            f"the run in {out_dir} was started with another --{', --'.join(changed)}. Use --config {out_dir}/args.yaml "
            f"--out_dir {out_dir}, or choose another --out_dir"
        )
    if is_finished(args, out_dir) and options["train"]["max_time"] != saved["train"].get("max_time"):
        raise ValueError(
            f"the run in {out_dir} is finished, with another --train.max_time. To go on from one of its saves, give that to "
            "--resume; or choose another --out_dir"
        )


def check_same_data(data: dict[str, Any], data_dir: Path, resume_dir: Path) -> None:
    """Raises ValueError if the examples are not those that the save was trained on, or validated on."""
    before = read_json_object(resume_dir / "state.json").get("data") or {}  # saves of older versions say less
    changed = [name for name, value in before.items() if value != data[name]]
    if changed == ["validation"]:
        what = f"{resume_dir} was validated on other examples"
    else:
        what = (
            f"{resume_dir} was trained on {before.get('n_examples')} examples, of which not all are the same as the "
            f"{data['n_examples']} of now"
        )
    if changed:
        raise ValueError(f"{data_dir} has changed: {what}. Put back the old data or its tokenizer, or choose another --out_dir")


def _warn_of_another_machine(resume_dir: Path, n_devices: int) -> None:
    before = read_json_object(resume_dir / "state.json")
    if different := [name for name, value in machine(n_devices).items() if before.get(name) != value]:
        print(
            f"warning: {' and '.join(different)} differ from the run that saved: the result will not be bit-identical",
            file=sys.stderr,
        )
