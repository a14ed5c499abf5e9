"""Sampling of the next token: the settings, the distribution that they make of the logits, and the draw.

B rows, V vocabulary. Everything is computed in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_llm.args.base import MIN_TEMPERATURE, sampling_rules
from lit_llm.errors import OptionError

NOT_FINITE = "the model's logits are not finite, as after an overflow of float16. Use another `precision`"


def usable(temperature: float) -> float:
    """Replace a temperature that is too small to divide by with 0: HELM sends 1e-7 and means 0."""
    return 0.0 if 0 <= temperature < MIN_TEMPERATURE else temperature


@dataclass(frozen=True)
class Sampling:
    """Settings of one row; they apply in the order of transformers: penalty, temperature, top_k, top_p, min_p.

    Raises:
        OptionError: for a setting that could make finite logits infinite, or leave nothing to draw.
    """

    temperature: float = 0.8
    """Divides the logits; 0 takes the most likely token."""
    top_k: int | None = None
    """Keep the k most likely tokens, and those that equal the last of them."""
    top_p: float = 1.0
    """Keep the fewest tokens whose probabilities sum to at least this (https://arxiv.org/abs/1904.09751)."""
    min_p: float = 0.0
    """Keep tokens of at least this probability relative to the most likely one (https://arxiv.org/abs/2407.01082)."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens so far (https://arxiv.org/abs/1909.05858, 4.1)."""
    seed: int = 1337

    def __post_init__(self) -> None:
        if mistakes := [text for wrong, text in sampling_rules(self) if wrong]:
            raise OptionError("\n".join(mistakes))

    def generator(self) -> torch.Generator:
        """Return the random stream of a row. It is on the CPU, so that a sample does not depend on the device."""
        return torch.Generator().manual_seed(self.seed)


def sample(
    logits: Tensor, settings: Sequence[Sampling], generators: Sequence[torch.Generator], seen: Sequence[Sequence[int]]
) -> Tensor:
    """Draw one token per row, (B,), from logits (B, V); -1 for a row whose logits are not finite.

    Row i draws once from `generators[i]` and from nothing else, so that it does not depend on the other rows. `seen[i]` holds
    its tokens so far, the prompt included, for the repetition penalty.
    """
    finite = are_finite(logits)
    logits = penalize(logits.float(), settings, seen)
    tokens = logits.argmax(dim=-1)
    groups: dict[tuple, list[int]] = {}
    for i, s in enumerate(settings):
        if s.temperature > 0:
            groups.setdefault((s.temperature, s.top_k, s.top_p, s.min_p), []).append(i)
    for rows in groups.values():
        probabilities = distribution(logits[rows], settings[rows[0]])
        tokens[rows] = draw(probabilities, [generators[i] for i in rows])
    return tokens.where(finite, -1)


def are_finite(logits: Tensor) -> Tensor:
    """Return (...), True where a token can be drawn from logits (..., V): their largest is a finite number."""
    return logits.amax(dim=-1).isfinite()


def penalize(logits: Tensor, settings: Sequence[Sampling], seen: Sequence[Sequence[int]]) -> Tensor:
    """Apply the repetition penalty of each row to logits (B, V)."""
    if all(s.repetition_penalty == 1 for s in settings):
        return logits
    logits = logits.clone()
    for row, s, ids in zip(logits, settings, seen, strict=True):
        where = torch.tensor(sorted(set(ids)), device=row.device)
        found = row[where]
        found = torch.where(found < 0, found * s.repetition_penalty, found / s.repetition_penalty)
        row[where] = found.clamp(max=torch.finfo(row.dtype).max)
    return logits


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities (B, V) to sample from, given logits (B, V) after the penalty, at a temperature above 0."""
    logits = logits.float()
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / min(sampling.temperature, 1e30)  # 1e39 overflows float32
    if sampling.top_k is not None and sampling.top_k < logits.size(-1):
        last = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < last, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        kept = ordered.masked_fill(before >= sampling.top_p, 0)  # keeps the token that reaches top_p
        probabilities = probabilities.scatter(-1, order, kept)
    if sampling.min_p > 0:
        highest = probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < sampling.min_p * highest, 0)
    return probabilities / probabilities.sum(dim=-1, keepdim=True)


def draw(probabilities: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one token per row, (B,), from probabilities (B, V), which need not sum to 1."""
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:]
    target = torch.cat([torch.rand(1, generator=g) for g in generators])[:, None].to(total.device) * total
    target = target.minimum(total.nextafter(torch.zeros_like(total)))  # rounded up to the total, it would hit no token
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=probabilities.size(-1) - 1)  # of NaN it is V
