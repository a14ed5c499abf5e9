"""How several devices share a model that generates: a part of every layer each (`tensor_parallel.py`), or some of the layers.

Layers on several devices run in one process, one after the other, and hidden states move along: no faster than one device, but
no device needs to hold them all.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from lit_llm.args.base import InferenceStrategy
from lit_llm.devices.tensor_parallel import why_not_split
from lit_llm.errors import OptionError
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
    """Return how several devices share a model, and a sentence with the reason.

    Raises:
        OptionError: if they cannot, or not in the way that was asked for.
    """
    why_not = why_not_split(config, n_devices, quantize, has_adapter)
    if device.type == "cuda" and n_devices > torch.cuda.device_count():
        raise OptionError(f"`devices` is {n_devices}, but this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps":
        raise OptionError(f"`devices` is {n_devices}, but MPS is one device. Omit it")
    if asked != "layers" and why_not is None:
        return "tensor", "tensor, heads and features of every layer are divided"
    if asked == "tensor":
        raise OptionError(f"`strategy` tensor is not possible: {why_not}. Use `strategy` layers on GPUs, or omit `devices`")
    if device.type == "cpu":
        reason = "" if why_not is None else f"heads and features cannot be divided ({why_not}), and "
        raise OptionError(
            f"`devices` is {n_devices}, but {reason}layers cannot be distributed, since a CPU is one device. Omit it"
        )
    if n_devices > config.n_layer:
        raise OptionError(f"`devices` is {n_devices}, but there are only {config.n_layer} layers. Use at most {config.n_layer}")
    if n_started() is not None:
        raise OptionError(f"`devices` {n_devices} for layers is one process. Start it without torchrun or srun")
    return "layers", "layers one after the other" + ("" if why_not is None else f", since {why_not}")


def place(model: GPT, devices: Sequence[torch.device], dtype: torch.dtype | None) -> list[torch.device]:
    """Return the device of each block, so that each device has about the same number of bytes, in their order.

    Embeddings, last norm and head are on the first device.

    Args:
        model: On the meta device, with quantized linears in place.
        dtype: dtype of what is not quantized; None: a half precision.
    """
    width = 2 if dtype is None else dtype.itemsize

    def n_bytes(module: nn.Module) -> int:
        return sum(p.numel() * (width if p.is_floating_point() else 1) for p in module.parameters())

    sizes = [n_bytes(block) for block in model.h]
    total = n_bytes(model)
    before, placement = total - sum(sizes), []  # bytes that precede a block
    for size in sizes:
        placement.append(devices[min(int((before + size / 2) * len(devices) / total), len(devices) - 1)])
        before += size
    return placement
