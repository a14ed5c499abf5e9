"""Norms of the residual stream, and of the heads of queries and keys."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.model.config import Config
from lit_llm.model.recompute import recomputed


class Norm(nn.Module):
    """RMSNorm, w x / sqrt(mean(x^2) + eps), or LayerNorm, w (x - mean(x)) / sqrt(var(x) + eps) + b.

    Computed in float32, since squares overflow in float16 and lose bits in bfloat16; returned in the dtype of the input.
    """

    def __init__(self, config: Config, size: int | None = None, bias: bool | None = None, eps: float | None = None) -> None:
        super().__init__()
        self.kind, self.eps, self.size = config.norm, config.norm_eps if eps is None else eps, size or config.n_embd
        self.weight = None if self.kind.endswith("_fixed") else nn.Parameter(torch.ones(self.size))
        self.bias = nn.Parameter(torch.zeros(self.size)) if (config.norm_bias if bias is None else bias) else None

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self.normalized, x, self.weight, self.bias)

    def normalized(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        weight = None if weight is None else weight.float()
        bias = None if bias is None else bias.float()
        if weight is not None and self.kind.endswith("_plus_one"):
            weight = weight + 1
        if self.kind.startswith("layer"):
            return F.layer_norm(x.float(), (self.size,), weight, bias, self.eps).to(x.dtype)
        return F.rms_norm(x.float(), (self.size,), weight, self.eps).to(x.dtype)


class HeadNorms(nn.ModuleList):
    """One norm without bias for each head of (B, heads, T, hs); a list, because upstream has one tensor per head."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([norm(head) for norm, head in zip(self, x.split(1, dim=1), strict=True)], dim=1)


class RowNorms(Norm):
    """Norm of each head of (B, heads, T, hs) with its row of a weight (heads, hs): as `HeadNorms`, with one tensor upstream."""

    def __init__(self, config: Config, n_heads: int) -> None:
        super().__init__(config, config.head_size, bias=False)
        self.weight = nn.Parameter(torch.ones(n_heads, config.head_size))

    def normalized(self, x: Tensor, weight: Tensor, bias: None) -> Tensor:
        return (super().normalized(x.float(), None, None) * weight.float()[:, None]).to(x.dtype)


def qk_norm(config: Config, layer: int, n_heads: int) -> nn.Module | None:
    """Return the norm of q or k that a layer has, see `Config.qk_norm`."""
    if config.qk_norm is None:
        return None
    if config.qk_norm == "fixed":
        fixed = Norm(replace(config, norm=f"{config.norm}_fixed"), config.head_size, bias=False)
        return fixed if config.has_rope(layer) else None
    if config.qk_norm == "row":
        return Norm(config, n_heads * config.head_size)
    if config.qk_norm == "heads":
        return RowNorms(config, n_heads)
    if config.qk_norm == "each_head":
        return HeadNorms(Norm(config, config.head_size, bias=False) for _ in range(n_heads))
    return Norm(config, config.head_size)
