"""Gemma: norms that are stored minus one, scaled embeddings, two kinds of RoPE."""

from lit_llm.errors import CheckpointError
from lit_llm.model.config_json import Fields, Keys, positive, window_fields
from lit_llm.model.families.family import Family
from lit_llm.schema import shown


def _gemma2(k: Keys, fields: Fields) -> Fields:
    slides = [i % 2 == 0 for i in range(fields["n_layer"])]
    return {**window_fields(k, len(slides), k.optional_size("sliding_window", 4096), slides), **_query_scale(k)}


def _query_scale(k: Keys) -> Fields:
    return {"attention_scale": positive("query_pre_attn_scalar", k.get("query_pre_attn_scalar", 256)) ** -0.5}


def _gemma3_kinds(k: Keys) -> Fields:
    """`rope_parameters` by kind of layer."""
    kinds = k.object("rope_parameters")
    if unknown := sorted(kinds.keys() - {"full_attention", "sliding_attention"}):
        raise CheckpointError(f"rope_parameters has fields that are not supported: {', '.join(unknown)}")
    if wrong := [kind for kind, value in kinds.items() if not isinstance(value, dict)]:
        raise CheckpointError(f"rope_parameters.{wrong[0]} must be an object, found {shown(kinds[wrong[0]])}")
    return kinds


def _gemma3_rope(k: Keys) -> Fields:
    return {**_gemma3_kinds(k).get("full_attention", {}), **k.object("rope_scaling")}


def _gemma3(k: Keys, fields: Fields) -> Fields:
    """Layers with a sliding window have a RoPE of their own."""
    given = _gemma3_kinds(k).get("sliding_attention", {})
    local = {name: value for name, value in given.items() if value is not None}
    theta = positive("rope_local_base_freq", local.pop("rope_theta", k.get("rope_local_base_freq", 10000.0)))
    if local.pop("rope_type", "default") != "default" or local:
        raise CheckpointError(f"scaled RoPE in layers with a sliding window is not supported: {shown(given)}")
    pattern = k.size("sliding_window_pattern", 6)
    slides = [(i + 1) % pattern != 0 for i in range(fields["n_layer"])]
    window = window_fields(k, len(slides), k.optional_size("sliding_window", 4096), slides)
    return {**window, **_query_scale(k), "local_rope_theta": theta, "block_size": k.size("max_position_embeddings", 131072)}


_GEMMA: Fields = {
    "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    "attention_bias": False, "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
_GEMMA2 = _GEMMA | {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
}  # fmt: skip
_GEMMA_FIXED: Fields = {"norm": "rms_plus_one", "scale_embeddings": True}
_GEMMA_ONLY: Fields = {"use_bidirectional_attention": False}

GEMMA: dict[str, Family] = {
    "gemma": Family(
        "Gemma 2B and 7B, CodeGemma",
        _GEMMA,
        fixed=_GEMMA_FIXED,
        only=_GEMMA_ONLY,
        unused=("hidden_activation",),
        # The first release wrote `gelu` and meant its approximation.
        more=lambda k, fields: {"activation": "gelu_tanh"} if fields["activation"] == "gelu" else {},
    ),
    "gemma2": Family(
        "Gemma 2 2B, 9B and 27B",
        _GEMMA2 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        spelled={"hidden_act": "hidden_activation"},
        fixed={**_GEMMA_FIXED, "post_norm": True},
        only=_GEMMA_ONLY,
        unused=("hidden_act",),
        more=_gemma2,
    ),
    "gemma3_text": Family(
        "Gemma 3 270M and 1B",
        _GEMMA2 | {"vocab_size": 262208, "max_position_embeddings": 131072, "rope_theta": 1e6, "final_logit_softcapping": None},
        spelled={"hidden_act": "hidden_activation"},
        fixed={**_GEMMA_FIXED, "post_norm": True, "qk_norm": "head"},
        only={**_GEMMA_ONLY, "attn_logit_softcapping": None},
        unused=("hidden_act", "_sliding_window_pattern"),
        rope=_gemma3_rope,
        more=_gemma3,
    ),
}  # fmt: skip
