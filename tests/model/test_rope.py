"""Every type of RoPE scaling against transformers, at positions beyond the original context."""

import json

import pytest
import torch
from families import Case, make_reference, random_ids, relative_difference
from transformers import AutoConfig, AutoModelForCausalLM

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
        ({"type": "dynamic", "factor": 2.0, "alpha": 1000}, "alpha"),
        ({"type": "linear", "factor": 1e300}, "factor"),
        ({"type": "yarn", "factor": 2.0, "rope_theta": 1}, "rope_theta"),
        ({"type": "yarn", "factor": 2.0, "truncate": "no"}, "truncate"),
        ({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4}, "short_factor"),
        ({"type": "longrope", "short_factor": [1.0] * 4}, "long_factor"),
        ({"rope_type": "llama3", "factor": 8.0}, "high_freq_factor"),
    ],
)
def test_scaling_that_is_not_understood_is_refused_by_name(scaling, named):
    with pytest.raises(ValueError, match=named):
        Config.from_hf({"model_type": "llama", "vocab_size": 99, **_SIZES, "rope_scaling": scaling})


_HF = {"model_type": "llama", "vocab_size": 99, **_SIZES}
_EXTENDED = {
    "linear": ({"rope_type": "linear", "factor": 4.0}, 512),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.5}, 320),
    "yarn as Qwen's": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
    "yarn without a length": ({"rope_type": "yarn", "factor": 4.0}, 512),
    "yarn that config.json counts in": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
    "longrope": ({**_LONGROPE, "factor": 4.0}, 128),
    "longrope by its factor": ({**_LONGROPE, "original_max_position_embeddings": 128, "factor": 2.0}, 256),
    "llama3": ({**SCALINGS["llama3"], "factor": 32.0}, 128),  # Llama 3.2 1B: 8192 x 32 is more than its 131072
    "default": ({"rope_type": "default"}, 128),
}


@pytest.mark.parametrize("name", _EXTENDED)
def test_context_is_the_one_that_scaling_gives(name):
    scaling, context = _EXTENDED[name]
    assert Config.from_hf({**_HF, "rope_scaling": scaling}).block_size == context


def test_scaling_of_gemma3_is_in_its_context_already():
    hf = {**_HF, "model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert Config.from_hf(hf).block_size == 128


@pytest.mark.parametrize("name", ["linear", "dynamic", "llama3", "yarn", "longrope"])
@torch.inference_mode()
def test_fields_that_transformers_does_not_read_change_nothing(name, tmp_path):
    others = {"finetuned": True, "attention_factor": 3.0, "beta_fast": 5, "original_max_position_embeddings": 16, "mscale": 2.0}
    if name == "yarn":
        others = {"finetuned": True, "low_freq_factor": 9.0, "short_factor": None}
    if name == "longrope":
        others = {"finetuned": True, "beta_fast": 9}
    case = _case(name)
    reference = make_reference(case, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    given = {key: value for key, value in config["rope_parameters"].items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_parameters": others | given}))
    ids = random_ids(case, 2, 100)
    found = load_model(tmp_path)(ids)
    assert relative_difference(found, reference(ids).logits) < 1e-5
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(ids).logits
    assert relative_difference(found, theirs) < 1e-5


@pytest.mark.parametrize("name", ["attn_factor", "short_mscale", "long_mscale"])
def test_fields_that_only_vllm_reads_are_said_to_be_ignored(name):
    with pytest.warns(UserWarning, match=f"{name}, which transformers and lit_llm ignore, but vLLM reads"):
        Config.from_hf({**_HF, "rope_scaling": {**_YARN, name: 0.8}})


def test_old_rope_scaling_replaces_rope_parameters_as_in_transformers():
    hf = {**_HF, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 7.0}, "rope_scaling": SCALINGS["linear"]}
    theirs = AutoConfig.for_model(**hf).rope_parameters
    ours = Config.from_hf(hf)
    assert ours.rope_scaling == {name: theirs[name] for name in ("rope_type", "factor")}
    assert ours.rope_theta == theirs["rope_theta"]


def test_longchat_condense_ratio_must_agree_with_rope_scaling():
    hf = {"model_type": "llama", "vocab_size": 99, **_SIZES, "rope_condense_ratio": 8}
    same = Config.from_hf({**hf, "rope_scaling": {"type": "linear", "factor": 8.0}})
    assert same == Config.from_hf(hf)
    assert same.block_size == 8 * 128
    with pytest.raises(ValueError, match="rope_condense_ratio"):
        Config.from_hf({**hf, "rope_scaling": {"type": "linear", "factor": 2.0}})
