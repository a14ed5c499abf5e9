"""Combinations of the changes that several adapters make to one weight, all of shape (C_out, C_in)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Combine = Callable[[Sequence[Tensor], Sequence[float]], Tensor]
"""The combination of changes, each with its weight."""


def combination(name: str, density: float, seed: int) -> Combine:
    """Return a way of combining changes, by its name in PEFT where PEFT has it.

    Args:
        density: Share of the entries of each change that are kept: by `ties` and `magnitude_prune` the largest, by `dare` any.
        seed: Seed of the random choice.
    """
    generator = torch.Generator().manual_seed(seed)

    def largest(change: Tensor) -> Tensor:
        kept = change.abs().flatten().topk(int(density * change.numel())).indices
        return torch.zeros_like(change).flatten().index_copy(0, kept, change.flatten()[kept]).view_as(change)

    def random(change: Tensor) -> Tensor:
        """Entries that are kept grow, so that their expected value stays."""
        kept = torch.bernoulli(torch.full_like(change, density), generator=generator)
        return change * kept / density

    prune = largest if name in ("ties", "magnitude_prune") else random if name.startswith("dare") else lambda change: change
    join = slerp if name == "slerp" else _of_one_sign if name.endswith("ties") else _sum

    def combine(changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        return join([prune(change) if density < 1 else change for change in changes], weights)

    return combine


def _sum(changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros_like(changes[0])
    for change, weight in zip(changes, weights, strict=True):
        total += weight * change
    return total


def _of_one_sign(changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Mean of the weighted entries whose sign is that of their sum (TIES, https://arxiv.org/abs/2306.01708, section 3)."""
    sign = torch.where(_sum(changes, [1.0] * len(changes)) >= 0, 1, -1)
    agrees = [change.sign() == sign for change in changes]
    n = sum(agree.float() for agree in agrees)
    chosen = _sum([change * agree for change, agree in zip(changes, agrees, strict=True)], weights)
    return chosen / torch.as_tensor(n).clamp(min=1)


_NEARLY_PARALLEL = 0.9995
"""Cosine above which the sine of the angle is too small to divide by: a line is then as good as an arc."""


def slerp(changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Interpolation of two changes along the arc between them (https://dl.acm.org/doi/10.1145/325165.325242):
    (sin((1 - t) a) x + sin(t a) y) / sin(a), with the angle a between x and y as vectors, and weights 1 - t and t.

    Along the line, if one of them is zero or they are nearly parallel.
    """
    x, y = changes
    lengths = x.norm() * y.norm()
    cosine = float((x * y).sum() / lengths) if lengths > 0 else 1.0
    if abs(cosine) > _NEARLY_PARALLEL:
        return _sum(changes, weights)
    angle = torch.tensor(cosine, dtype=torch.float64).acos()
    factors = [(torch.sin(weight * angle) / torch.sin(angle)).item() for weight in weights]
    return _sum(changes, factors)
