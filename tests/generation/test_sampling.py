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

from lit_llm.generation.sampling import Sampling, distribution, draw, penalize, sample

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


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4, 3e38])
@pytest.mark.parametrize("temperature", [1e-4, 1.0, 1e300])
@pytest.mark.parametrize("penalty", [0.01, 100])
def test_finite_logits_give_probabilities(scale, temperature, penalty):
    logits = torch.tensor([[1.0, -1.0, 0.5, 0.0, -0.25]]) * scale
    settings = Sampling(temperature, repetition_penalty=penalty)
    found = distribution(penalize(logits, [settings], [[0, 1, 2]]), settings)
    assert found.isfinite().all()
    assert found.sum() == pytest.approx(1)


def test_rows_with_infinite_logits_are_reported_others_sampled():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    expected = sample(logits, [Sampling()] * 5, [torch.Generator().manual_seed(i) for i in range(5)], [[]] * 5)
    logits[1, 3], logits[3, 7], logits[4] = torch.nan, torch.inf, -torch.inf
    for settings in (Sampling(), Sampling(top_k=5, top_p=0.5), Sampling(0)):
        found = sample(logits, [settings] * 5, [torch.Generator().manual_seed(i) for i in range(5)], [[]] * 5)
        assert (found[[1, 3, 4]] == -1).all()
        assert (found[[0, 2]] >= 0).all()
        assert settings != Sampling() or (found[[0, 2]] == expected[[0, 2]]).all()
    assert draw(torch.full((1, 5), torch.nan), [torch.Generator()]).item() < 5


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", v) for v in (float("nan"), -1, 1e-40, float("inf"))]
    + [("top_k", 0), ("top_p", 0), ("top_p", float("nan")), ("min_p", 2)]
    + [("repetition_penalty", v) for v in (0, 1e-38, 1e38, float("nan"))],
)
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^`{name}` must be .*, found "):
        Sampling(**{name: value})
