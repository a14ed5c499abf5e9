"""Gated short convolutions (https://arxiv.org/abs/2511.23404): each feature of a token reads that of the few tokens before it.

B rows, T tokens, C features, K = conv_size.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.model.config import Config
from lit_llm.model.layer_state import LayerState
from lit_llm.model.recompute import recomputed


class ShortConvolution(nn.Module):
    """o(c * conv(b * x)), where b, c and x are projections of the input."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.conv_bias)
        self.conv = CausalConvolution(config.n_embd, config.conv_size, config.conv_bias)
        self.o = nn.Linear(config.n_embd, config.n_embd, bias=config.conv_bias)

    def forward(self, x: Tensor, in_document: Tensor | None, state: LayerState | None) -> Tensor:
        """(B, T, C) from x (B, T, C), which continues `state`, or starts with `in_document` (T,) at 0 for each document."""
        bcx = self.in_proj(x)
        before = None if state is None else state.read(0, x.size(0))
        y = recomputed(partial(self.gated, in_document, before), bcx, self.conv.weight, self.conv.bias)
        if state is not None and before is not None:
            b, _, x = bcx.chunk(3, dim=-1)
            state.write(0, state.last(torch.cat((before, b * x), dim=1), before.size(1)))
        return self.o(y)

    def gated(
        self, in_document: Tensor | None, before: Tensor | None, bcx: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        b, c, x = bcx.chunk(3, dim=-1)
        return c * convolve(preceded(b * x, before, weight.size(-1) - 1), weight, bias, in_document)


class CausalConvolution(nn.Module):
    """Weights of `convolve`, with the names and shapes of `nn.Conv1d`."""

    def __init__(self, n_features: int, size: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_features, 1, size))
        self.bias = nn.Parameter(torch.zeros(n_features)) if bias else None


def preceded(x: Tensor, before: Tensor | None, n: int) -> Tensor:
    """Return x (B, T, C) after the n tokens `before` it (B, n, C), or after zeros, (B, n + T, C)."""
    return F.pad(x, (0, 0, n, 0)) if before is None else torch.cat((before, x), dim=1)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, in_document: Tensor | None) -> Tensor:
    """Return y_t = bias + sum over k of weight_k * x_t-(K-1-k), feature by feature, (B, T, C).

    A sum of K products in place of a kernel: it is exact at the borders of documents, and needs no other layout.

    Args:
        x: (B, K - 1 + T, C), from K - 1 tokens before the first.
        weight: (C, 1, K), bias: (C,).
        in_document: (T,), position of each token in its document, before which it reads zeros. None: one document.
    """
    K, y = weight.size(-1), None
    T = x.size(1) - (K - 1)
    for k, factor in enumerate(weight[:, 0].float().unbind(-1)):
        product = x[:, k : k + T].float() * factor
        if in_document is not None and k < K - 1:
            product = product.masked_fill((in_document < K - 1 - k)[:, None], 0)
        y = product if y is None else y + product
    assert y is not None
    return (y if bias is None else y + bias.float()).to(x.dtype)
