"""Sources of data with weights: how many examples an epoch draws, in which order, and lists that are refused."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_llm.data.batches import StepPlan
from lit_llm.data.mixture import Draws, n_drawn, sources_of
from lit_llm.errors import OptionError


def test_paths_have_weights_or_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = sources_of(Path("a.jsonl:0.7,data/b/,more/a.csv:1e-1"))
    assert [(s.name, str(s.path), s.weight) for s in found] == [
        ("a", "a.jsonl", 0.7), ("b", "data/b", None), ("a-2", "more/a.csv", 0.1),
    ]  # fmt: skip
    (tmp_path / "x,y:1").mkdir()  # a folder that exists is one source, whatever its name
    assert [(s.path, s.weight) for s in sources_of(Path("x,y:1"))] == [(Path("x,y:1"), None)]


@pytest.mark.parametrize(
    ("data_dir", "message"),
    [
        ("a:0,b:0", "sum to 0: nothing would be trained"),
        ("a:0.7,b:0.3,c", r"sum to 1: nothing is left of 1 for the sources without one"),
        ("a:-1,b", "the weight '-1' must be a number from 0"),
        ("a:much,b", "the weight 'much' must be a number from 0"),
        ("a:nan,b", "the weight 'nan' must be"),
        ("a:inf,b", "the weight 'inf' must be"),
        ("a,,b", "lists an empty path"),
        ("a:1,./a:2", "lists a twice"),
    ],
)
def test_a_list_that_cannot_be_drawn_from_is_refused(data_dir, message):
    with pytest.raises(OptionError, match=message):
        sources_of(Path(data_dir))


@pytest.mark.parametrize(
    ("sizes", "weights", "expected"),
    [
        ([10, 30], [None, None], [10, 30]),
        ([10, 30], [0.5, 0.5], [20, 20]),
        ([10, 30], [7.0, 3.0], [28, 12]),
        ([10, 30], [0.7, None], [28, 12]),
        ([10, 20, 10], [0.5, None, None], [20, 13, 7]),  # 13.3 and 6.7
        ([10, 30], [0.0, 1.0], [0, 40]),
    ],
)
def test_an_epoch_draws_by_the_weights(sizes, weights, expected):
    assert n_drawn(sizes, weights) == expected


@given(
    sources=st.lists(st.tuples(st.integers(1, 40), st.floats(0.01, 5)), min_size=2, max_size=4),
    global_batch_size=st.integers(1, 9),
    seed=st.integers(0, 2),
)
def test_no_example_comes_again_before_all_others_of_its_source(sources, global_batch_size, seed):
    sizes = [size for size, _ in sources]
    counts = n_drawn(sizes, [weight for _, weight in sources])
    assert sum(counts) == sum(sizes)
    plan = StepPlan([1] * sum(sizes), global_batch_size, 1, 1, True, seed, Draws(tuple(sizes), tuple(counts)))
    seen = Counter[int]()
    for step in range(3 * plan.steps_per_epoch):
        by_source = plan.n_seen(step)
        start = 0
        for size, n in zip(sizes, by_source, strict=True):
            of_source = [seen[i] for i in range(start, start + size)]
            assert sum(of_source) == n
            if step % plan.steps_per_epoch == 0:  # within an epoch all sources are shuffled together
                assert max(of_source) - min(of_source) <= 1
            start += size
        seen.update(plan.examples(step))
    assert plan.n_seen(3 * plan.steps_per_epoch) == [3 * count for count in counts]


def test_sources_without_weights_are_ordered_as_one():
    """Two files of a folder that was split are the same run."""
    one = StepPlan([1] * 40, 10, 2, 1, True, seed=0)
    two = StepPlan([1] * 40, 10, 2, 1, True, seed=0, draws=Draws((15, 25), (15, 25)))
    assert [one.examples(step) for step in range(8)] == [two.examples(step) for step in range(8)]
