"""Families like Llama: gated MLPs, RMSNorm, RoPE."""

from lit_llm.errors import CheckpointError
from lit_llm.model.config_json import Fields, Keys, check_size, rope_parameters, window_fields
from lit_llm.model.families.family import LAYER_NORM, LAYER_NORM_EPS, MISTRAL, QWEN, Family, used_window


def _llama(k: Keys, fields: Fields) -> Fields:
    if (ratio := k.number("rope_condense_ratio", 1)) in (1, None):
        return {}
    if fields["rope_scaling"] not in (None, {"rope_type": "linear", "factor": ratio}):
        raise CheckpointError("rope_condense_ratio and rope_scaling contradict each other")
    # LongChat's name for linear scaling.
    length = check_size(
        "max_position_embeddings times rope_condense_ratio", int(k.size("max_position_embeddings", 2048) * ratio)
    )
    return {"rope_scaling": {"rope_type": "linear", "factor": ratio}, "block_size": max(length, fields["block_size"])}


def _smollm3(k: Keys, fields: Fields) -> Fields:
    """Every `no_rope_layer_interval`-th layer has no RoPE; these are the layers that may have a sliding window."""
    n_layer, interval = fields["n_layer"], k.size("no_rope_layer_interval", 4)
    has_rope = k.per_layer("no_rope_layers", n_layer) or [int((i + 1) % interval != 0) for i in range(n_layer)]  # 1: with RoPE
    window = used_window(k, None)
    without = [i for i, has in enumerate(has_rope) if not has]
    slides = [window is not None and not has for has in has_rope]
    return {**window_fields(k, n_layer, window, slides), "no_rope_layers": without or None}


def _qwen(k: Keys, fields: Fields) -> Fields:
    """The first `max_window_layers` attend to everything, the later ones to the window."""
    window, full = used_window(k, 4096), k.count("max_window_layers", 28)
    n_layer = fields["n_layer"]
    return window_fields(k, n_layer, window, [window is not None and i >= full for i in range(n_layer)])


def _phi3_rope(k: Keys) -> Fields:
    """The first releases called `longrope` `su` or `yarn`."""
    parameters = rope_parameters(k)
    old = {key: "longrope" for key in ("type", "rope_type") if parameters.get(key) in ("su", "yarn")}
    return parameters | old


def _stablelm(k: Keys, fields: Fields) -> Fields:
    parallel = k.flag("use_parallel_residual", False)
    return {
        "attn_bias": k.flag("use_qkv_bias", False),
        "qk_norm": "each_head" if k.flag("qk_layernorm", False) else None,
        "parallel_residual": parallel,
        "shared_attention_norm": parallel,
    }


_OLMO: Fields = {"vocab_size": 50304, "attention_bias": False}

DENSE: dict[str, Family] = {
    "llama": Family(
        "Llama 1 to 3.3, Code Llama, TinyLlama, OpenLLaMA, Vicuna, LongChat, Nous-Hermes, Platypus, SmolLM 1 and 2",
        {"attention_bias": False, "mlp_bias": False},
        more=_llama,
    ),
    "mistral": Family("Mistral 7B v0.1 to v0.3, Mistral Nemo, Zephyr 7B", MISTRAL | {"sliding_window": 4096}),
    "qwen2": Family(
        "Qwen 1.5, 2 and 2.5 except their mixtures of experts, Qwen2.5-Coder, Qwen2.5-Math",
        QWEN,
        fixed={"attn_bias": True},
        only={"use_mrope": False},
        more=_qwen,
    ),
    "qwen3": Family(
        "Qwen3 0.6B to 32B", QWEN | {"head_dim": 128, "attention_bias": False}, fixed={"qk_norm": "head"}, more=_qwen
    ),
    "phi3": Family(
        "Phi-3 and Phi-3.5 mini, Phi-3 medium, Phi-4, Phi-4-mini",
        {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
         "rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096, "sliding_window": None},
        only={"attention_bias": False},
        rope=_phi3_rope,
    ),
    "olmo": Family(
        "OLMo 1B and 7B",
        _OLMO | {"clip_qkv": None, "rms_norm_eps": 1e-5},
        spelled={"rms_norm_eps": None},
        fixed={"norm": "layer_fixed"},
    ),
    "olmo2": Family(
        "OLMo 2 1B, 7B, 13B and 32B",
        _OLMO | {"rms_norm_eps": 1e-5},
        fixed={"pre_norm": False, "post_norm": True, "qk_norm": "row"},
    ),
    "smollm3": Family(
        "SmolLM3 3B: some layers have no RoPE (https://arxiv.org/abs/2501.18795)",
        {"vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
         "num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2e6, "tie_word_embeddings": True,
         "attention_bias": False, "mlp_bias": False},
        more=_smollm3,
    ),
    "stablelm": Family(
        "StableLM 3B-4E1T, StableLM Zephyr 3B, StableLM 2 1.6B and 12B, Stable Code 3B",
        {"vocab_size": 50304, "hidden_size": 2560, "intermediate_size": 6912, "num_key_value_heads": 32,
         "max_position_embeddings": 4096, "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-5},
        spelled=LAYER_NORM_EPS,
        fixed=LAYER_NORM,
        more=_stablelm,
    ),
}  # fmt: skip
