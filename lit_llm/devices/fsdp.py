"""FSDP2 (https://arxiv.org/abs/2304.11277; torch.distributed.fsdp.fully_shard): each rank keeps a shard of every weight, and a
block is complete only while it computes. A run on one device does not import it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_llm.files import safetensors_header
from lit_llm.model.gpt import GPT


def shard(
    model: GPT, mesh: Any, dtype: torch.dtype | None, multiplied: torch.dtype | None = None, offload: bool = False
) -> None:
    """Give each rank of `mesh` its rows of every parameter: block by block, then embeddings, last norm and head together.

    A rank copies its shard out of the mapped file, and casts it then. Quantized weights loaded in parts are gathered one block
    at a time first.

    Args:
        dtype: dtype of frozen parameters; trained ones and their gradients are float32. Bytes and scales of quantized weights
            keep theirs. None: all keep theirs.
        multiplied: dtype of autocast, in which parameters are gathered and gradients sent; gradients are summed in float32.
            Otherwise autocast would keep a copy of each parameter for the backward pass.
        offload: Keep the shards, their gradients and the optimizer in the memory of the CPU.
    """
    from torch.distributed import fsdp

    policies: dict[str, Any] = {
        "offload_policy": fsdp.CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else fsdp.OffloadPolicy(),
        "mp_policy": fsdp.MixedPrecisionPolicy(multiplied, multiplied and torch.float32, cast_forward_inputs=False),
    }
    if offload:
        model.computes_on = torch.device(mesh.device_type)
    for module in (*model.h, model):
        for linear in module.modules():
            if getattr(linear, "in_parts", False):
                linear.gather_rows()  # type: ignore[operator]
        fsdp.fully_shard(module, mesh=mesh, **policies)
        if dtype is not None:
            module._apply(lambda t: t if not isinstance(t, nn.Parameter) else t.float() if t.requires_grad else t.to(dtype))
    fsdp.register_fsdp_forward_method(model, "hidden")  # after it the head stays complete until its gradient is there
    model.norm.register_forward_hook(_start_backward_here)


def _start_backward_here(norm: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Make `hidden` require a gradient: FSDP reduces the head's gradients when that one arrives, even if no block trains."""
    return output.requires_grad_() if torch.is_grad_enabled() else output


def reshard(model: nn.Module) -> None:
    """Free what a forward pass without gradient has gathered: parameters are then the shards that the optimizer changes."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator]


def whole(tensor: Tensor) -> Tensor:
    """Return the complete tensor, of which each rank may have a shard. All ranks must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]


def part_of(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]


_KINDS = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.uint8: "U8", torch.int8: "I8",
}  # fmt: skip


def write_whole(tensors: Mapping[str, Tensor], path: Path | None) -> None:
    """Write a safetensors file of tensors of which each rank may have a shard, gathered one at a time. All ranks must call it,
    all except one without a path."""
    about = ((name, _KINDS[t.dtype], t.shape, t.numel() * t.element_size()) for name, t in tensors.items())
    with open(os.devnull if path is None else path, "wb") as file:
        file.write(safetensors_header(about))
        for tensor in tensors.values():
            gathered = whole(tensor)
            if path is not None:
                file.write(gathered.cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this rank's shard of `tensor`, if `like`, which has its shape, is sharded."""
    if not hasattr(like, "placements") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
