"""Draws against exact distributions and transformers' own processors."""

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lit_llm.sampling import Sampling, distribution, penalize, sample

SETTINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.7),
    Sampling(temperature=1.0, top_k=3),
    Sampling(temperature=1.0, top_p=0.8),
    Sampling(temperature=1.0, min_p=0.3),
    Sampling(temperature=1.3, top_k=5, top_p=0.9, min_p=0.1),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_samples_follow_the_exact_distribution(sampling):
    """Chi-square of 20,000 draws over 8 tokens; 27 is its 99.97th percentile at 7 degrees of freedom."""
    logits = torch.tensor([2.0, -1.0, 0.5, 1.0, 1.5, -3.0, 0.0, 0.9])
    expected = (logits.double() / sampling.temperature).softmax(0).tolist()
    kept, mass = [], 0.0
    likeliest_first = sorted(range(8), key=lambda i: -expected[i])[: sampling.top_k or 8]
    total = sum(expected[i] for i in likeliest_first)
    for token in likeliest_first:
        if mass < sampling.top_p * total and expected[token] >= sampling.min_p * max(expected):
            kept.append(token)
        mass += expected[token]
    exact = torch.zeros(8, dtype=torch.double)
    exact[kept] = torch.tensor([expected[i] for i in kept], dtype=torch.double)
    exact /= exact.sum()
    n = 20_000
    draws = sample(logits.expand(n, 8), [sampling] * n, [torch.Generator().manual_seed(7)] * n, [[]] * n)
    counts = draws.bincount(minlength=8).double()
    assert counts[exact == 0].sum() == 0
    present = exact > 0
    assert ((counts - n * exact)[present] ** 2 / (n * exact)[present]).sum() < 27


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_the_distribution_is_that_of_transformers(sampling):
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(1)) * 3
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k is not None:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    warpers += [TopPLogitsWarper(sampling.top_p), MinPLogitsWarper(sampling.min_p)]
    expected = warpers(torch.zeros(5, 1, dtype=torch.long), logits).softmax(-1)
    torch.testing.assert_close(distribution(logits, sampling), expected, rtol=1e-5, atol=1e-7)


def test_the_repetition_penalty_is_that_of_transformers():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    seen = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(3))
    penalties = (1.3, 1.0, 0.8)
    found = penalize(logits, [Sampling(repetition_penalty=p) for p in penalties], seen.tolist())
    for row, penalty in enumerate(penalties):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(seen[row : row + 1], logits[row : row + 1])
        torch.testing.assert_close(found[row : row + 1], expected)


def test_a_draw_depends_on_its_own_row_alone():
    """Rows of different settings in one batch, each as if it were alone, for several draws."""
    logits = torch.randn(len(SETTINGS) + 1, 200, generator=torch.Generator().manual_seed(4))
    rows = [*SETTINGS, Sampling(temperature=0)]
    together = [s.generator() for s in rows]
    alone = [s.generator() for s in rows]
    for _ in range(5):
        found = sample(logits, rows, together, [[]] * len(rows)).tolist()
        assert found == [int(sample(logits[i : i + 1], rows[i : i + 1], alone[i : i + 1], [[]])) for i in range(len(rows))]
        assert found[-1] == int(logits[-1].argmax())
