"""Every type of RoPE scaling against transformers, at positions beyond the original context."""

import pytest
import torch
from families import Case, make_reference, random_ids, relative_difference

from lit_llm.checkpoint.load_model import load_model
from lit_llm.model.config import Config
from lit_llm.model.kv_cache import KVCache

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 2.0, 3.0, 4.0],
}
SCALINGS = {
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": _YARN,
    "yarn-attention-factor": {**_YARN, "attention_factor": 1.4},
    "yarn-mscale": {**_YARN, "mscale": 0.7, "mscale_all_dim": 0.3},
    "yarn-mscale-alone": {**_YARN, "mscale": 0.7},
    "yarn-betas": {**_YARN, "beta_fast": 4, "beta_slow": 0.5, "truncate": False},
    "yarn-implied-factor": {**_YARN, "factor": None},
    "longrope": _LONGROPE,
    "longrope-factor": {**_LONGROPE, "factor": 2.0},
    "longrope-attention-factor": {**_LONGROPE, "attention_factor": 1.3},
}


def _case(name: str) -> Case:
    context = 48 if name == "dynamic" else 128  # dynamic scaling begins beyond max_position_embeddings
    return Case(name, "llama", {**_SIZES, "max_position_embeddings": context, "rope_parameters": SCALINGS[name]})


@pytest.mark.parametrize("name", SCALINGS)
@torch.inference_mode()
def test_scaled_rope_equals_transformers(name, tmp_path):
    case = _case(name)
    reference = make_reference(case, tmp_path)
    model = load_model(tmp_path)
    for length in (20, 100):
        ids = random_ids(case, 2, length)
        assert relative_difference(model(ids), reference(ids).logits) < 1e-5


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
@torch.inference_mode()
def test_rope_by_length_switches_with_a_cache_as_in_transformers(name, tmp_path):
    """Each step's new token is turned by the length so far; what lies in the cache stays as it is."""
    case = _case(name)
    reference = make_reference(case, tmp_path)
    model = load_model(tmp_path)
    n_prompt = SCALINGS[name].get("original_max_position_embeddings", 48) - 2
    ids = random_ids(case, 1, n_prompt + 5)
    cache = KVCache(model.config, 1, 64, "cpu", torch.float32)
    logits = model.head(model.hidden(ids[:, :n_prompt], cache=cache))
    outputs = reference(ids[:, :n_prompt], use_cache=True)
    for position in range(n_prompt, ids.size(1)):
        assert relative_difference(logits[:, -1], outputs.logits[:, -1]) < 1e-5
        token = ids[:, position : position + 1]
        cache.length = position + 1
        logits = model.head(model.hidden(token, cache=cache, positions=torch.tensor([[position]])))
        outputs = reference(token, past_key_values=outputs.past_key_values, use_cache=True)
    assert relative_difference(logits[:, -1], outputs.logits[:, -1]) < 1e-5


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
@torch.inference_mode()
def test_each_row_and_document_turns_by_its_own_length(name, tmp_path):
    case = _case(name)
    make_reference(case, tmp_path)
    model = load_model(tmp_path)
    lengths = [10, 80, 30]
    ids = random_ids(case, 1, 120)
    packed = model(ids, lengths).split(lengths, dim=1)
    for document, logits in zip(ids.split(lengths, dim=1), packed, strict=True):
        assert relative_difference(logits, model(document)) < 1e-5
    length = torch.tensor([[10], [80]])
    cos, sin = model.rope(torch.tensor([[9], [79]]), length)
    for row in range(2):
        alone = model.rope(length[row] - 1, length[row])
        torch.testing.assert_close((cos[row, 0], sin[row, 0]), alone)


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        ({"type": "xpos", "factor": 2.0}, "'xpos'"),
        ({"type": "linear"}, "factor"),
        ({"type": "linear", "factor": 0}, "factor"),
        ({"type": "linear", "factor": "8"}, "factor"),
        ({"type": "linear", "factor": 2.0, "warp": 1}, "warp"),
        ({"type": "default", "mrope_section": [2, 1, 1]}, "mrope_section"),
        ({"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}, "original_max_position_embeddings"),
        ({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4}, "short_factor"),
        ({"type": "longrope", "short_factor": [1.0] * 4}, "long_factor"),
        ({"rope_type": "llama3", "factor": 8.0}, "high_freq_factor"),
    ],
)
def test_scaling_that_is_not_understood_is_refused_by_name(scaling, named):
    with pytest.raises(ValueError, match=named):
        Config.from_hf({"model_type": "llama", "vocab_size": 99, **_SIZES, "rope_scaling": scaling})


def test_longchat_condense_ratio_must_agree_with_rope_scaling():
    hf = {"model_type": "llama", "vocab_size": 99, **_SIZES, "rope_condense_ratio": 8}
    same = Config.from_hf({**hf, "rope_scaling": {"type": "linear", "factor": 8.0}})
    assert same == Config.from_hf(hf)
    with pytest.raises(ValueError, match="rope_condense_ratio"):
        Config.from_hf({**hf, "rope_scaling": {"type": "linear", "factor": 2.0}})
