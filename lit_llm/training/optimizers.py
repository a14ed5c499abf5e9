"""Optimizers by name: PyTorch's own, and those of bitsandbytes, and their state as named tensors."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lit_llm.args.finetune import TrainArgs
from lit_llm.devices.fsdp import part_like
from lit_llm.errors import OptionError
from lit_llm.methods.inject import freeze
from lit_llm.methods.method import Method
from lit_llm.model.gpt import GPT

MOMENTUM = 0.9
BETAS = (0.9, 0.95)

# Class of bitsandbytes, and the two rates of its averages: those of AdamW here, and those of the paper of Lion.
_BITSANDBYTES: dict[str, tuple[str, tuple[float, float]]] = {
    "adamw8bit": ("AdamW8bit", BETAS),
    "paged_adamw": ("PagedAdamW", BETAS),
    "paged_adamw8bit": ("PagedAdamW8bit", BETAS),
    "lion": ("Lion", (0.9, 0.99)),
    "lion8bit": ("Lion8bit", (0.9, 0.99)),
    "paged_lion": ("PagedLion", (0.9, 0.99)),
    "paged_lion8bit": ("PagedLion8bit", (0.9, 0.99)),
}


def check_optimizer(name: str, device: torch.device) -> None:
    """Raise OptionError if the optimizer does not run on the device."""
    if name in _BITSANDBYTES and device.type not in ("cpu", "cuda"):
        raise OptionError(f"`train.optimizer` {name} does not run on {device.type}. Use adamw")
    if name.startswith("paged") and device.type != "cuda":
        raise OptionError(
            f"`train.optimizer` {name} moves its state out of the memory of a CUDA device, and this run is on {device.type}. "
            f"Use {name.removeprefix('paged_')}"
        )


def make_optimizer(
    model: GPT, method: Method, args: TrainArgs, device: torch.device, scaled: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of `args` over what the method trains, in groups that share a learning rate.

    Args:
        scaled: Gradients are scaled, as in `16-mixed`: a fused step would unscale them itself, after they are clipped.
    """
    freeze(model, method)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(method.lr_scale(name), []).append(parameter)
    by_scale = [{"params": parameters, "lr_scale": scale} for scale, parameters in groups.items()]
    common: dict[str, Any] = {"lr": args.learning_rate, "weight_decay": args.weight_decay}
    if args.optimizer == "sgd":
        return torch.optim.SGD(by_scale, momentum=MOMENTUM, **common)
    if args.optimizer == "adafactor":
        # By default a step is in proportion to the parameter, at least to 1e-3: what starts at zero, as LoRA's B, would stay.
        return torch.optim.Adafactor(by_scale, eps=(None, 1.0), **common)
    if args.optimizer == "adamw":
        return torch.optim.AdamW(by_scale, betas=BETAS, fused=device.type in ("cpu", "cuda") and not scaled, **common)
    import bitsandbytes

    kind, betas = _BITSANDBYTES[args.optimizer]
    make: Callable[..., torch.optim.Optimizer] = getattr(bitsandbytes.optim, kind)
    return make(by_scale, betas=betas, **common)


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of each parameter by number and name, as in `3/exp_avg`. A count becomes an int64 without dimensions."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for index, values in optimizer.state_dict()["state"].items():
        for path, value in _leaves(values, (str(index),)):
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            # The parameters share the table of 8-bit values, and a file holds no tensor twice.
            tensors["/".join(path)] = tensor.clone() if tensor.data_ptr() in seen else tensor
            seen.add(tensor.data_ptr())
    return tensors


def load_state_tensors(optimizer: torch.optim.Optimizer, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Put back what `state_tensors` gave."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors:
        index, *_, kind = name.split("/")  # bitsandbytes takes its nested state flat as well
        is_count = tensor.dim() == 0 and tensor.dtype == torch.int64
        state.setdefault(int(index), {})[kind] = tensor.item() if is_count else part_like(tensor, parameters[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if getattr(optimizer, "is_paged", False):  # that memory can be moved is known of the tensor that was made so
        for parameter, values in optimizer.state.items():
            for kind in ("state1", "state2"):
                if kind in values:
                    paged = optimizer.get_state_buffer(parameter, dtype=values[kind].dtype)  # type: ignore[attr-defined]
                    values[kind] = paged.copy_(values[kind])


def _leaves(values: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))
        elif value is not None:
            yield (*path, name), value
