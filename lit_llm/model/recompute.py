"""Results that the backward pass recomputes from their inputs, because that is cheaper than keeping them until then.

For y = make(x) and z = W y, autograd would keep x for `make` and y for the product. Here it keeps x and a recipe: the backward
pass of the product asks for y, which `make` computes from x again, once for all that ask. Norms and activations cost little to
compute next to the matrix products, and their results are as large as those of the products.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge


def recomputed(make: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """Return `make(*inputs)`, for which autograd keeps only the inputs.

    Within `recipes_for_results`, operations that need the result for their own backward pass do not keep it either.
    """
    return _Recomputed.apply(make, *inputs) if _records() else make(*inputs)


def _records() -> bool:
    """Return True if there will be a backward pass with our graph: a compiler decides itself what to recompute."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, make: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.make, ctx.made = make, None
        return make(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, result = _make_again(ctx)
        ctx.made, result = None, get_gradient_edge(result)  # the values are no longer needed: free them
        wanted = [x for x in inputs if x is not None and x.requires_grad]
        grads = iter(torch.autograd.grad(result, wanted, grad_outputs))
        return None, *(next(grads) if x is not None and x.requires_grad else None for x in inputs)


def _make_again(node: Any) -> tuple[list[Tensor | None], Tensor]:
    """Return inputs and result of a node, computed once for all that ask before its own backward pass, which is the last."""
    if node.made is None:
        with torch.enable_grad():
            inputs = [None if x is None else x.detach().requires_grad_(x.requires_grad) for x in node.saved_tensors]
            node.made = inputs, node.make(*inputs)
    return node.made


def recipes_for_results() -> AbstractContextManager[None]:
    """Context in which autograd keeps, in place of a `recomputed` result or a view of it, its recipe."""
    return torch.autograd.graph.saved_tensors_hooks(_pack, _unpack) if _records() else nullcontext()


def _pack(x: Tensor) -> Any:
    source = x if x._base is None else x._base
    if source.grad_fn is None or not isinstance(source.grad_fn, _Recomputed._backward_cls):  # type: ignore[attr-defined]
        return x.detach(), x._version  # not x itself, which may own the node that keeps it: a cycle
    return source.grad_fn, (x.size(), x.stride(), x.storage_offset())


def _unpack(packed: Any) -> Tensor:
    kept, about = packed
    if not isinstance(kept, Tensor):
        return _make_again(kept)[1].detach().as_strided(*about)
    if kept._version != about:
        raise RuntimeError("a tensor that the backward pass needs was changed by an inplace operation")
    return kept
