"""Frequencies of rotary position embeddings (https://arxiv.org/abs/2104.09864) and their extensions to longer contexts."""

import math

import torch
from torch import Tensor

from lit_llm.config import Config


def inverse_frequencies(config: Config) -> Tensor:
    """Radians per position for each rotated pair, float32 of shape (rotary_size / 2,), on the CPU even under a meta device."""
    half = torch.arange(0, config.rotary_size, 2, dtype=torch.int64, device="cpu").float() / max(config.rotary_size, 1)
    inv_freq = 1.0 / config.rope_theta**half
    scaling = config.rope_scaling
    if scaling is None:
        return inv_freq
    if scaling["rope_type"] == "linear":  # position interpolation, https://arxiv.org/abs/2306.15595
        return inv_freq / scaling["factor"]
    if scaling["rope_type"] == "llama3":
        return _llama3(inv_freq, **{k: v for k, v in scaling.items() if k != "rope_type"})
    raise AssertionError(scaling)


def _llama3(
    inv_freq: Tensor,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> Tensor:
    """Llama 3.1: divide the low frequencies by `factor`, keep the high ones, interpolate between
    (https://github.com/meta-llama/llama-models, models/llama3/model.py, apply_scaling)."""
    turns = original_max_position_embeddings * inv_freq / (2 * math.pi)  # of each pair over the original context
    keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return keep * inv_freq + (1 - keep) * inv_freq / factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading dimensions of each head, in halves as Hugging Face lays them out.

    Args:
        x: (..., T, hs); cos, sin: (..., T, rotary_size), broadcast over heads.
    """
    n = cos.size(-1)
    head, rest = x[..., :n], x[..., n:]
    x1, x2 = head.chunk(2, dim=-1)
    rotated = head * cos + torch.cat((-x2, x1), dim=-1) * sin
    return rotated if rest.size(-1) == 0 else torch.cat((rotated, rest), dim=-1)
