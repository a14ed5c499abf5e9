"""How a model that generates lies on several devices: each holds a part of every layer (`parallel.py`), or some of the layers.

Layers on several devices run in one process, one after the other, and what they compute moves along: no faster than on one
device, but it need not hold them all.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from lit_llm.args.base import InferenceStrategy
from lit_llm.devices.tensor_parallel import why_not_split
from lit_llm.model.config import Config
from lit_llm.model.gpt import GPT
from lit_llm.ranks import n_started

Strategy = Literal["tensor", "layers"]


def choose_inference_strategy(
    asked: InferenceStrategy,
    config: Config,
    device: torch.device,
    n_devices: int,
    quantize: str | None,
    has_adapter: bool,
) -> tuple[Strategy, str]:
    """How several devices share a model, and that with the reason as a text.

    Raises:
        ValueError: if they cannot, or not in the way that was asked for.
    """
    why_not = why_not_split(config, n_devices, quantize, has_adapter)
    if device.type == "cuda" and n_devices > torch.cuda.device_count():
        raise ValueError(f"--devices {n_devices}: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps":
        raise ValueError(f"--devices {n_devices}: MPS is one device. Leave it out")
    if asked != "layers" and why_not is None:
        return "tensor", "tensor, heads and features of every layer are dealt out"
    if asked == "tensor":
        raise ValueError(f"--strategy tensor: {why_not}. Take --strategy layers on GPUs, or leave out --devices")
    if device.type == "cpu":
        reason = "" if why_not is None else f"heads and features cannot be dealt out ({why_not}), and "
        raise ValueError(f"--devices {n_devices}: {reason}layers cannot, since a CPU is one device. Leave it out")
    if n_devices > config.n_layer:
        raise ValueError(f"--devices {n_devices}: there are only {config.n_layer} layers. Take as many at most")
    if n_started() is not None:
        raise ValueError(f"--devices {n_devices} for layers is one process: start it without torchrun or srun")
    return "layers", "layers one after the other" + ("" if why_not is None else f", since {why_not}")


def place(model: GPT, devices: Sequence[torch.device], dtype: torch.dtype | None) -> list[torch.device]:
    """The device of each block: about as many bytes for each device, in their order.

    Embeddings, last norm and head are the first device's.

    Args:
        model: On the meta device, with quantized linears in place.
        dtype: Of what is not quantized; None: some half precision.
    """
    width = 2 if dtype is None else dtype.itemsize

    def n_bytes(module: nn.Module) -> int:
        return sum(p.numel() * (width if p.is_floating_point() else 1) for p in module.parameters())

    sizes = [n_bytes(block) for block in model.h]
    total = n_bytes(model)
    before, placement = total - sum(sizes), []
    for size in sizes:
        placement.append(devices[min(int((before + size / 2) * len(devices) / total), len(devices) - 1)])
        before += size
    return placement
