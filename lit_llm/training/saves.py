"""Saves from which a run goes on as if it had never stopped."""

import csv
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_llm.devices.fsdp import part_like, part_of, reshard, write_whole
from lit_llm.files import read_json_object, remove_folder, write_json
from lit_llm.ranks import largest, n_ranks, of_all, rank, shared_folder
from lit_llm.training.optimizers import load_state_tensors, state_tensors


@dataclass
class State:
    """Where a run stands; with the trained parameters, the optimizer and the random state all that resuming needs."""

    step: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    first_val_loss: float | None = None
    val_loss: float | None = None
    """The newest one."""
    best_val_loss: float | None = None
    n_not_better: int = 0
    """Validations since the best one."""
    held_loss: float | None = None
    """Of what `best` holds. It is not the best one if that was set aside."""
    mean_loss: float | None = None
    """Exponential mean of the losses that were looked at, the newest with a weight of 0.1."""


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def largest_weight(model: nn.Module) -> float:
    """The largest magnitude among the trained parameters of all ranks; infinite if one is no number."""
    reshard(model)
    held = (part_of(p.detach()) for p in trained_parameters(model).values())
    norms = [torch.linalg.vector_norm(part, math.inf) for part in held if part.numel()]
    own = torch.stack(norms).max().item() if norms else 0.0  # one wait for the GPU
    return largest(math.inf if math.isnan(own) else own)[0]  # between ranks, the maximum of NaN and a number is not defined


def save_state(
    folder: Path,
    state: State,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    write_result: Callable[[Path | None], None],
    scaler: torch.amp.GradScaler | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """Write all that resuming needs, and the trained model itself, into `folder`, whole or not at all. All ranks take part.

    `data` says what was trained on; whoever resumes compares it.
    """
    reshard(model)
    tensors = {f"parameter/{name}": p.detach() for name, p in trained_parameters(model).items()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in state_tensors(optimizer).items()}
    tensors |= {f"random/{i}/cpu": random for i, random in enumerate(of_all(torch.get_rng_state()))}
    if torch.cuda.is_available():
        tensors |= {f"random/{i}/cuda": random for i, random in enumerate(of_all(torch.cuda.get_rng_state()))}
    with shared_folder(folder) as new:
        write_result(new)
        write_whole(tensors, None if new is None else new / "state.safetensors")
        if new is not None:
            scale = {} if scaler is None else {"scaler": scaler.state_dict()}
            write_json(new / "state.json", {**asdict(state), **machine(n_ranks()), **scale, "data": data})


def load_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
) -> State:
    """Put everything back that `save_state` wrote. Raises ValueError if the save is of another model or incomplete.

    A rank that the run did not have when it was saved goes on with its own random numbers.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / "state.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder} is damaged ({error}). Resume from an earlier step, or start afresh") from error
    saved = read_json_object(folder / "state.json")
    parameters = trained_parameters(model)
    names = {name.removeprefix("parameter/") for name in tensors if name.startswith("parameter/")}
    if names != parameters.keys():
        raise ValueError(f"{folder} holds other parameters than this run trains: resume with the options in args.yaml")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(part_like(tensors[f"parameter/{name}"], parameter))
    own = ((name.removeprefix("optimizer/"), t) for name, t in tensors.items() if name.startswith("optimizer/"))
    load_state_tensors(optimizer, own)
    if scaler is not None and "scaler" in saved:
        scaler.load_state_dict(saved["scaler"])
    if f"random/{rank()}/cpu" in tensors:
        torch.set_rng_state(tensors[f"random/{rank()}/cpu"])
    if f"random/{rank()}/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[f"random/{rank()}/cuda"])
    saved.setdefault("held_loss", saved["best_val_loss"])  # saves of older versions
    return State(**{name: saved[name] for name in asdict(State())})


def saves(out_dir: Path) -> list[Path]:
    """Complete saves of a run, oldest first."""
    return sorted(out_dir.glob("step-*"), key=step_of)


def step_of(save: Path) -> int:
    return int(save.name.removeprefix("step-"))


def set_aside_later(out_dir: Path, state: State) -> None:
    """Move what the run wrote after `state` to `abandoned-1`, or the first number that is free: the run goes on from there.

    The newest save first, so that what is left is a run up to some step at every moment. A run that goes on from its newest
    save only makes again what it was making: nothing moves.
    """
    later = [path for path in [out_dir / "final"] if path.is_dir()]
    later += [save for save in reversed(saves(out_dir)) if step_of(save) > state.step]
    about = [path for path in (out_dir / "report.html", out_dir / "loss.png") if path.is_file()]
    if (out_dir / "best").is_dir() and _best_is_later(out_dir / "metrics.csv", state):
        about.append(out_dir / "best")
    if not later and not (about and state.step == 0):
        return
    aside = next(path for i in count(1) if not (path := out_dir / f"abandoned-{i}").exists())
    aside.mkdir()
    if (out_dir / "metrics.csv").is_file():
        shutil.copy(out_dir / "metrics.csv", aside)
    for path in [*about, *later]:
        path.rename(aside / path.name)
    told = ", ".join(path.name for path in [*later, *about])
    print(f"what was written after step {state.step} is now in {aside}: {told}", file=sys.stderr)


def _best_is_later(metrics: Path, state: State) -> bool:
    """Whether what `best` holds was found after `state`."""
    if state.held_loss is None or not metrics.is_file():
        return state.held_loss is None
    with metrics.open(newline="", encoding="utf-8") as file:
        later = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"] and int(row["step"]) > state.step]
    return bool(later) and min(later) < state.held_loss


def remove_old_saves(out_dir: Path, n_kept: int) -> None:
    """Remove all saves but the newest `n_kept`. One that is half removed does not bear its name any more."""
    for save in saves(out_dir)[:-n_kept]:
        remove_folder(save)


def machine(n_devices: int) -> dict[str, Any]:
    """What a resumed run must share with the run that saved, to be bit-identical."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "devices": n_devices, "threads": torch.get_num_threads()}
