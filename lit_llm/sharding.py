"""FSDP2 (https://arxiv.org/abs/2304.11277; torch.distributed.fsdp.fully_shard): every rank holds a part of each weight, and a
block is whole only while it computes. What runs on one device does not import it."""

from typing import Any

import torch
from torch import Tensor, nn

from lit_llm.model import GPT


def shard(model: GPT, mesh: Any, dtype: torch.dtype | None, offload: bool = False) -> None:
    """Give each rank of `mesh` its rows of every parameter: block by block, then embeddings, last norm and head together.

    What a rank holds is copied out of the mapped file, and cast then: no rank ever has all of a model in another dtype.

    Args:
        dtype: Of frozen parameters; trained ones are float32, and so are their gradients. None leaves them as they are, and
            the bytes and scales of quantized weights.
        offload: Leave what a rank holds, gradients and optimizer included, in the memory of the CPU.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method

    policy = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy()
    for module in (*model.h, model):
        fully_shard(module, mesh=mesh, offload_policy=policy)
        if dtype is not None:
            module._apply(lambda t: t if not isinstance(t, nn.Parameter) else t.float() if t.requires_grad else t.to(dtype))
    register_fsdp_forward_method(model, "hidden")  # after it the head stays whole until its gradient is there


def reshard(model: nn.Module) -> None:
    """Put back what a forward pass without gradient has left whole: parameters are then those that the optimizer changes."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, of which each rank may hold a part. All ranks must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of `tensor` that this rank holds, if `like`, which has its shape, is held in parts."""
    if not hasattr(like, "placements") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
