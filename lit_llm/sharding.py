"""FSDP2 (https://arxiv.org/abs/2304.11277; torch.distributed.fsdp.fully_shard): every rank holds a part of each weight, and a
block is whole only while it computes. What runs on one device does not import it."""

from typing import Any

from torch import Tensor, nn

from lit_llm.model import GPT


def shard(model: GPT, mesh: Any) -> None:
    """Give each rank of `mesh` its rows of every parameter: block by block, then embeddings, last norm and head together.

    Frozen parameters keep their dtype, the bytes of 4-bit weights too; trained ones are float32, and so are their gradients.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in model.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
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
