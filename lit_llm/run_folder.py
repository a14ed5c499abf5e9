"""The folder of a run: what it says of the run, and whether the run in it can be gone on with."""

import dataclasses
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lit_llm.args.finetune import FinetuneArgs
from lit_llm.distributed import n_ranks
from lit_llm.files import read_json_object, write_json
from lit_llm.resume import machine, saves


def find_save(args: FinetuneArgs, out_dir: Path) -> Path | None:
    """The save to resume from, None for a new run. Raises ValueError if `out_dir` holds a run that is not to be resumed."""
    started = (out_dir / "args.yaml").is_file()
    if args.resume is None:
        if out_dir.is_file() or (out_dir.is_dir() and any(out_dir.iterdir())):
            raise ValueError(f"{out_dir} already holds a run. Add --resume auto to go on with it, or choose another --out_dir")
        return None
    if args.resume == "auto":
        if not started and (results := [p.name for n in ("step-*", "best", "final") for p in out_dir.glob(n)]):
            raise ValueError(
                f"{out_dir} holds {results[0]} but no args.yaml: it is no run, and {results[0]} could be replaced. Choose "
                "another --out_dir"
            )
        found = saves(out_dir) if started else []
        resume_dir = found[-1] if found else None
    else:
        resume_dir = Path(args.resume)
        if not (resume_dir / "state.json").is_file():
            raise FileNotFoundError(f"--resume {resume_dir} is not a save of a run: it has no state.json. Try --resume auto")
        if not started:
            raise FileNotFoundError(f"--resume {resume_dir} must be a save of the run in --out_dir: {out_dir} has no args.yaml")
    if resume_dir is not None:
        _check_same_run(out_dir, as_yaml(args), resume_dir, args.devices * args.num_nodes)
    return resume_dir


def start_run(args: FinetuneArgs, out_dir: Path) -> None:
    """Make the run folder and write what describes the run."""
    out_dir.mkdir(parents=True, exist_ok=True)
    options = yaml.safe_dump(as_yaml(args), sort_keys=False, allow_unicode=True)
    (out_dir / "args.yaml").write_text(options, encoding="utf-8")
    versions = {name: version(name) for name in ("torch", "lightning", "tokenizers", "safetensors", "bitsandbytes")}
    about = {"python": platform.python_version(), "platform": platform.platform(), **machine(n_ranks()), "versions": versions}
    write_json(out_dir / "environment.json", about)


def as_yaml(args: FinetuneArgs) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(args), default=str))


def _check_same_run(out_dir: Path, options: dict[str, Any], resume_dir: Path, n_devices: int) -> None:
    """Raises ValueError if an option differs that changes what is trained; warns if the machine does."""
    saved = yaml.safe_load((out_dir / "args.yaml").read_text(encoding="utf-8"))
    no_matter = ("resume", "dry_run", "logger", "eval", "train", "devices", "num_nodes", "strategy", "cpu_offload")
    changed = [name for name in options if options[name] != saved.get(name) and name not in no_matter]
    free = ("max_time", "save_interval", "log_interval", "keep_last", "probe")
    changed += [f"train.{n}" for n, v in options["train"].items() if v != saved["train"].get(n) and n not in free]
    if changed:
        raise ValueError(
            f"the run in {out_dir} was started with another --{', --'.join(changed)}. Use --config {out_dir}/args.yaml"
        )
    before = read_json_object(resume_dir / "state.json")
    if different := [name for name, value in machine(n_devices).items() if before.get(name) != value]:
        print(
            f"warning: {' and '.join(different)} differ from the run that saved: the result will not be bit-identical",
            file=sys.stderr,
        )
    print(f"resuming from {resume_dir}", file=sys.stderr)
