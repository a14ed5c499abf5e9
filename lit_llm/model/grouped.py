"""Products of many small matrices in one call: each expert's weight with its own tokens, without waiting for their number.

M rows, E experts, C_in and C_out features.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def runs_grouped(x: Tensor, linears: Sequence[nn.Module]) -> bool:
    """Return True if `grouped_linear` is supported and faster than a linear after another.

    On a GPU it does not wait for the router. A CPU has nothing to wait for, and multiplies one after the other anyway.
    """
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    if not x.is_cuda or dtype != torch.bfloat16 or torch.cuda.get_device_capability(x.device) < (8, 0):
        return False
    sizes = {n for linear in linears if isinstance(linear, nn.Linear) for n in linear.weight.shape}
    return all(map(_is_plain, linears)) and all(n % 8 == 0 for n in sizes)  # rows of whole 16 bytes


def _is_plain(linear: nn.Module) -> bool:
    """Return False for quantized linears, and for linears that a method changes."""
    return isinstance(linear, nn.Linear) and not linear._forward_hooks and not linear._forward_pre_hooks


def grouped_linear(x: Tensor, linears: Sequence[nn.Linear], ends: Tensor, expert: Tensor) -> Tensor:
    """Return linears[e](x[i]) for each row i of x, (M, C_out).

    Args:
        x: (M, C_in), the rows of each linear together.
        ends: (E,) int32, the row after the last one of each linear.
        expert: (M,), the index of the linear of each row.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    y = _GroupedProduct.apply(x, ends, *(linear.weight for linear in linears))
    if linears[0].bias is None:
        return y
    return y + torch.stack([linear.bias for linear in linears]).to(y.dtype)[expert]


class _GroupedProduct(torch.autograd.Function):
    """x[i] w_e^T for each row. The weights stay E parameters: autograd's own function would need one (E, C_out, C_in)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x if any(ctx.needs_input_grad[2:]) else None, ends, *weights)
        return F.grouped_mm(x, stacked(weights, x.dtype).mT, offs=ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, ends, *weights = ctx.saved_tensors
        grad = grad_outputs[0].contiguous()
        grad_x = F.grouped_mm(grad, stacked(weights, grad.dtype), offs=ends) if ctx.needs_input_grad[0] else None
        if x is None:
            return grad_x, None, *(None for _ in weights)
        products = F.grouped_mm(grad.mT, x, offs=ends)  # (E, C_out, C_in)
        is_empty = ends.diff(prepend=ends.new_zeros(1)) == 0
        products = products.masked_fill(is_empty[:, None, None], 0)  # a kernel need not write what no row contributes to
        return grad_x, None, *(part.to(weight.dtype) for part, weight in zip(products, weights, strict=True))


def stacked(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return weights of one shape as one tensor (E, ...): a view if they are next to each other in memory, else a copy."""
    first = weights[0]
    step = first.numel() * first.element_size()
    adjacent = first.is_contiguous() and all(
        w.data_ptr() == first.data_ptr() + i * step and w.is_contiguous() for i, w in enumerate(weights)
    )
    if not adjacent or first.untyped_storage().nbytes() < step * len(weights):
        return torch.stack(list(weights)).to(dtype)
    return first.detach().as_strided((len(weights), *first.shape), (first.numel(), *first.stride())).to(dtype)


def put_together(linears: Sequence[nn.Module]) -> None:
    """Move the weights of plain linears next to each other in memory, so that `stacked` needs no copy."""
    weights = [linear.weight for linear in linears if isinstance(linear, nn.Linear)]
    if len(weights) == len(linears):
        for weight, part in zip(weights, torch.stack([weight.detach() for weight in weights]).unbind(), strict=True):
            weight.data = part
