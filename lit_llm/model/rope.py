"""Rotary position embeddings (https://arxiv.org/abs/2104.09864) and their extensions to longer contexts.

Pair i of a head, at position p, is turned by the angle p * f_i with f_i = theta^(-2i / size). A score q . k then depends on the
difference of two positions only. Beyond the trained context the slow pairs reach angles never seen in training; scaling makes
them turn slower:

    linear    f_i / factor
    dynamic   theta grows with the length of the sequence
    llama3    f_i / factor for slow pairs, f_i for fast ones, a mix between
    yarn      the same with another ramp, and sharper attention
    longrope  f_i / searched_i, one list for short and one for long sequences
"""

import math
from typing import Any

import torch
from torch import Tensor, nn


class Rope(nn.Module):
    """Tables of cos and sin for `rotate`.

    The buffer is created on the CPU even under `torch.device("meta")`: it is computed, not loaded.

    Args:
        size: Number of leading dimensions of each head that are rotated.
        theta: Base of the wavelengths.
        scaling: `Config.rope_scaling`.
        interleaved: `Config.rope_interleaved`.
        reverse: `Config.rope_reversed`.
    """

    def __init__(
        self, size: int, theta: float, scaling: dict[str, Any] | None, interleaved: bool = False, reverse: bool = False
    ) -> None:
        super().__init__()
        self.interleaved, self.sign = interleaved, -1 if reverse else 1
        self.scaling: dict[str, Any] = {"rope_type": "default"} if scaling is None else scaling
        self.factor = _attention_factor(**self.scaling)
        self.register_buffer("inv_freq", _inverse_frequencies(size, theta, self.scaling), persistent=False)
        self.inv_freq: Tensor
        original: int | None = self.scaling.get("original_max_position_embeddings")
        self.switch = original if self.scaling["rope_type"] == "longrope" else None  # length up to which the short table holds

    def forward(self, positions: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos, and sin that is negative for the first of each pair, (T, size) or (B, 1, T, size), in float32.

        bfloat16 has 8 bits: above position 256 it cannot separate neighbours.

        Args:
            positions: (T,) or (B, T).
            length: Length of the sequence that each position belongs to; broadcasts to `positions`. The types `dynamic` and
                `longrope` depend on it: keys cached while a sequence was short do not fit a long one.
        """
        angles = positions[..., None].float() * self._frequencies(length)
        if angles.dim() == 3:
            angles = angles[:, None]  # over heads
        cos, sin = angles.cos() * self.factor, angles.sin() * (self.sign * self.factor)
        if self.interleaved:
            return torch.stack((cos, cos), dim=-1).flatten(-2), torch.stack((-sin, sin), dim=-1).flatten(-2)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    def _frequencies(self, length: Tensor) -> Tensor:
        """Return radians per position for each pair: (size / 2,), or (..., size / 2) if they depend on the length (...)."""
        inv_freq, rope_type = self.inv_freq.float(), self.scaling["rope_type"]
        if rope_type not in ("dynamic", "longrope"):
            return inv_freq
        original = self.scaling["original_max_position_embeddings"]
        if rope_type == "longrope":  # https://arxiv.org/abs/2402.13753
            return inv_freq[(length > original).long()]
        # NTK-aware: theta' = theta * growth^(size / (size - 2)), https://arxiv.org/abs/2309.00071, appendix B.1. Then
        # f_i' = f_i * growth^(-2i / (size - 2)): the fastest pair keeps its angle, the slowest turns `growth` times slower.
        size, factor = 2 * inv_freq.size(-1), self.scaling["factor"]
        growth = factor * length.clamp(min=original) / original - (factor - 1)
        return inv_freq * growth[..., None] ** (-torch.arange(0, size, 2, device=inv_freq.device) / (size - 2))


def _inverse_frequencies(size: int, theta: float, scaling: dict[str, Any]) -> Tensor:
    """Return radians per position for each pair, float32 (size / 2,); for `longrope` (2, size / 2): short, then long."""
    exponents = torch.arange(0, size, 2, dtype=torch.int64, device="cpu").float() / size
    inv_freq = 1.0 / theta**exponents
    rope_type = scaling["rope_type"]
    if rope_type == "linear":  # position interpolation, https://arxiv.org/abs/2306.15595
        return inv_freq / scaling["factor"]
    if rope_type == "llama3":
        return _llama3(inv_freq, **scaling)
    if rope_type == "yarn":
        return _yarn(inv_freq, theta, **scaling)
    if rope_type == "longrope":
        return inv_freq / torch.tensor([scaling["short_factor"], scaling["long_factor"]], device="cpu")
    return inv_freq


def _llama3(
    inv_freq: Tensor,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
    rope_type: str,
) -> Tensor:
    """Llama 3.1: divide the low frequencies by `factor`, keep the high ones, interpolate between them
    (https://github.com/meta-llama/llama-models, models/llama3/model.py, apply_scaling)."""
    turns = original_max_position_embeddings * inv_freq / (2 * math.pi)  # of each pair over the original context
    keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return keep * inv_freq + (1 - keep) * inv_freq / factor


def _yarn(
    inv_freq: Tensor,
    theta: float,
    factor: float,
    original_max_position_embeddings: int,
    beta_fast: float = 32,
    beta_slow: float = 1,
    truncate: bool = True,
    **_: Any,
) -> Tensor:
    """YaRN (https://arxiv.org/abs/2309.00071, section 3.2): keep pairs that turn more than `beta_fast` times over the original
    context, divide those that turn less than `beta_slow` times by `factor`, with a linear ramp between them."""
    half = inv_freq.numel()

    def pair_that_turns(times: float) -> float:  # i with original * theta^(-i / half) = 2 pi * times
        return half * math.log(original_max_position_embeddings / (times * 2 * math.pi)) / math.log(theta)

    low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    ramp = (torch.arange(half, dtype=torch.float32, device="cpu") - low) / (high - low or 0.001)
    keep = 1 - ramp.clamp(0, 1)
    return keep * inv_freq + (1 - keep) * inv_freq / factor


def _attention_factor(
    rope_type: str,
    factor: float = 1.0,
    attention_factor: float | None = None,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    original_max_position_embeddings: int = 0,
    **_: Any,
) -> float:
    """Return the factor of cos and sin, whose square multiplies the scores: long contexts need sharper attention (YaRN section
    3.4, LongRoPE section 3.4)."""
    if rope_type not in ("yarn", "longrope"):
        return 1.0
    if attention_factor is not None:
        return attention_factor
    if factor <= 1:
        return 1.0
    if rope_type == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original_max_position_embeddings))
    growth = 0.1 * math.log(factor)
    if mscale and mscale_all_dim:
        return (growth * mscale + 1) / (growth * mscale_all_dim + 1)
    return growth + 1


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotate the leading dimensions of each head: (a, b) -> (a cos - b sin, b cos + a sin).

    Pair i consists of dimensions i and i + rotary_size / 2 or, interleaved, of 2i and 2i + 1. `sin` is negative for the first
    of each pair, so that both lines are x * cos + swapped pairs * sin.

    Args:
        x: (..., T, hs); cos, sin: (..., T, rotary_size), as `Rope` returns them for the same layout, broadcast over heads.
    """
    n = cos.size(-1)
    head, rest = x[..., :n], x[..., n:]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    swapped = head.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if interleaved else head.roll(n // 2, dims=-1)
    rotated = torch.addcmul(head * cos, swapped, sin)
    return rotated if rest.size(-1) == 0 else torch.cat((rotated, rest), dim=-1)
