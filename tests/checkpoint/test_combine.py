"""Combinations of adapters, compared with the functions of PEFT."""

import pytest
import torch
from peft.utils import merge_utils

from lit_llm.args.checkpoint import MergeLoRAArgs
from lit_llm.checkpoint.combine import combination, slerp
from lit_llm.errors import OptionError

WEIGHTS = [0.7, -0.4, 1.5]


@pytest.mark.parametrize("name", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
@pytest.mark.parametrize("density", [0.3, 0.8])
def test_combinations_equal_those_of_peft(name, density):
    torch.manual_seed(0)
    changes = [torch.randn(12, 20) for _ in WEIGHTS]
    torch.manual_seed(5)
    expected = getattr(merge_utils, name)(changes, torch.tensor(WEIGHTS), density)
    found = combination(name, density, seed=5)(changes, WEIGHTS)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_slerp_keeps_the_length_and_turns_by_a_share_of_the_angle():
    torch.manual_seed(0)
    x, y = torch.randn(6, 5), torch.randn(6, 5)
    x, y = x / x.norm(), y / y.norm()
    found = slerp([x, y], [0.75, 0.25])
    angle = (x * y).sum().acos()
    torch.testing.assert_close(found.norm(), torch.tensor(1.0))
    torch.testing.assert_close((found * x).sum().acos(), angle / 4)
    torch.testing.assert_close((found * y).sum().acos(), angle * 3 / 4)
    torch.testing.assert_close(slerp([x, 2 * x], [0.5, 0.5]), 1.5 * x)
    torch.testing.assert_close(slerp([x, 0 * x], [0.75, 0.25]), 0.75 * x)


@pytest.mark.parametrize("name", ["ties", "dare_ties", "slerp"])
def test_merged_weights_have_the_combined_changes(name, checkpoint, tmp_path):
    from test_export import make_adapter

    from lit_llm.checkpoint.load_model import load_model
    from lit_llm.checkpoint.merge import merge_adapters

    adapters = [make_adapter(tmp_path / f"a{i}", checkpoint, seed=i, targets=t, r=3) for i, t in enumerate(("q,v", "v"))]
    weights = [0.5, 0.5]
    combine = combination(name, 1.0 if name == "slerp" else 0.5, seed=1)
    merge_adapters(checkpoint, adapters, weights, tmp_path / "merged", combine)
    base, merged, alone = load_model(checkpoint), load_model(tmp_path / "merged"), []
    for i, adapter in enumerate(adapters):
        merge_adapters(checkpoint, [adapter], [1.0], tmp_path / f"m{i}")
        alone.append(load_model(tmp_path / f"m{i}"))
    again = combination(name, 1.0 if name == "slerp" else 0.5, seed=1)
    for layer in range(2):
        for part in ("q", "v"):
            weight = f"h.{layer}.attn.{part}.weight"
            changes = [(model.get_parameter(weight) - base.get_parameter(weight)).detach() for model in alone]
            found = merged.get_parameter(weight) - base.get_parameter(weight)
            torch.testing.assert_close(found, again(changes, weights), rtol=1e-4, atol=1e-5)


REFUSED = {
    "one": ({"adapter_dir": "a", "combine": "ties"}, "`combine` ties needs several adapters"),
    "three": ({"adapter_dir": ["a", "b", "c"], "combine": "slerp"}, "`combine` slerp takes two adapters, found 3"),
    "sum": ({"adapter_dir": ["a", "b"], "combine": "slerp", "weights": [1.0, 1.0]}, "must have the sum 1"),
    "density": ({"adapter_dir": ["a", "b"], "density": 0.5}, "`density` has no effect with `combine` linear"),
    "seed": ({"adapter_dir": ["a", "b"], "combine": "ties", "seed": 1}, "`seed` has no effect with `combine` ties"),
    "range": ({"adapter_dir": ["a", "b"], "combine": "ties", "density": 1.5}, "`density` must be above 0 and at most 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_without_effect_are_refused(name):
    options, message = REFUSED[name]
    with pytest.raises(OptionError, match=message):
        MergeLoRAArgs(checkpoint_dir="base", output_dir="out", **options)
