"""Saves from which a run resumes as if it had never stopped."""

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import torch
from torch import nn

from lit_llm.devices.fsdp import part_like, part_of, reshard, write_whole
from lit_llm.errors import CheckpointError
from lit_llm.files import read_json_object, write_json
from lit_llm.ranks import largest, n_ranks, of_all, rank, shared_folder
from lit_llm.schema import conform
from lit_llm.training.optimizers import load_state_tensors, state_tensors


@dataclass
class State:
    """Progress of a run: with the trained parameters, the optimizer and the random state, all that resuming needs."""

    step: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    first_val_loss: float | None = None
    val_loss: float | None = None
    """The newest validation loss."""
    best_val_loss: float | None = None
    n_not_better: int = 0
    """Validations since the best one."""
    held_loss: float | None = None
    """Validation loss of the model in `best`. It is not `best_val_loss` if that model was set aside."""
    mean_loss: float | None = None
    """Exponential mean of the logged losses, the newest with a weight of 0.1."""

    def note_validation(self, loss: float) -> bool:
        """Record a validation loss, and return whether the model is better than the one in `best`."""
        self.val_loss = loss
        is_best = self.best_val_loss is None or loss < self.best_val_loss
        self.best_val_loss = loss if is_best else self.best_val_loss
        self.n_not_better = 0 if is_best else self.n_not_better + 1
        is_better = self.held_loss is None or loss < self.held_loss
        self.held_loss = loss if is_better else self.held_loss
        return is_better


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def largest_weight(model: nn.Module) -> float:
    """The largest magnitude among the trained parameters of all ranks; infinite if one is NaN."""
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
    metrics: Path | None = None,
) -> None:
    """Write the state of a run and the trained model into `folder`, whole or not at all. All ranks take part.

    Args:
        write_result: Writes the trained model into a folder; called with None on ranks that only take part.
        data: Identity of the examples, compared on resume.
        metrics: File with the rows up to this step, which is copied.
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
            if metrics is not None:
                shutil.copyfile(metrics, new / metrics.name)


def load_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
) -> State:
    """Restore everything that `save_state` wrote. A rank that the saved run did not have keeps its own random numbers.

    Raises:
        CheckpointError: if the save is of another model, or damaged.
    """
    from safetensors.torch import load_file

    saved, tensors = read_save(folder), load_file(folder / "state.safetensors")
    parameters = trained_parameters(model)
    shapes = {name.removeprefix("parameter/"): t.shape for name, t in tensors.items() if name.startswith("parameter/")}
    if shapes != {name: parameter.shape for name, parameter in parameters.items()}:
        raise CheckpointError(f"{folder} has other parameters than this run trains. Resume with the options in args.yaml")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(part_like(tensors[f"parameter/{name}"], parameter))
    own = ((name.removeprefix("optimizer/"), t) for name, t in tensors.items() if name.startswith("optimizer/"))
    load_state_tensors(optimizer, own)
    if scaler is not None and saved["scaler"] is not None:
        scaler.load_state_dict(saved["scaler"])
    if f"random/{rank()}/cpu" in tensors:
        torch.set_rng_state(tensors[f"random/{rank()}/cpu"])
    if f"random/{rank()}/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[f"random/{rank()}/cuda"])
    return State(**{name: saved[name] for name in asdict(State())})


_MORE = {"data": dict[str, Any] | None, "scaler": dict[str, Any] | None}
_STATE_FILE = TypedDict("_STATE_FILE", {**get_type_hints(State), **_MORE})  # pyright: ignore[reportGeneralTypeIssues]


def read_save(folder: Path, advice: str = "Resume from an earlier one") -> dict[str, Any]:
    """Return the contents of `state.json`; of `state.safetensors`, only the header is checked.

    Raises:
        CheckpointError: if the save is damaged. Its message ends in `advice`.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / "state.json"
    try:
        saved = {"data": None, "scaler": None, **read_json_object(path, advice=advice)}
        saved.setdefault("held_loss", saved.get("best_val_loss"))  # saves of older versions lack it, and `data`
        with safe_open(folder / "state.safetensors", "pt"):
            return conform(saved, _STATE_FILE, path, advice)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is damaged ({error}). {advice}") from error


def machine(n_devices: int) -> dict[str, Any]:
    """Device, number of devices and threads, which must be equal for a resumed run to be bit-identical."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "devices": n_devices, "threads": torch.get_num_threads()}
