"""Families like Llama: gated MLPs, RMSNorm, RoPE."""

from lit_llm.errors import CheckpointError
from lit_llm.model.config_json import Fields, Keys, check_size, positive, rope_parameters, window_fields
from lit_llm.model.families.family import (
    LAYER_NORM,
    LAYER_NORM_EPS,
    MISTRAL,
    PLAIN_LAYER_NORM,
    QWEN,
    Family,
    local_theta,
    rope_of_full_layers,
    rope_or,
    used_window,
    without_rope,
)


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


def _olmo3(k: Keys, fields: Fields) -> Fields:
    """Scaling applies to the layers that attend to all positions, every fourth by default."""
    theta, slides = local_theta(k, 5e5), [(i + 1) % 4 != 0 for i in range(fields["n_layer"])]
    same = fields["rope_scaling"] is None and fields["rope_theta"] == theta
    window = window_fields(k, len(slides), k.optional_size("sliding_window", 4096), slides)
    return {**window, "local_rope_theta": None if same else theta}


def _ministral(k: Keys, fields: Fields) -> Fields:
    window, n_layer = k.optional_size("sliding_window", 4096), fields["n_layer"]
    return window_fields(k, n_layer, window, [window is not None] * n_layer)


_MINISTRAL3_ROPE: Fields = {
    "type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip


def _ministral3_rope(k: Keys) -> Fields:
    parameters = rope_or(_MINISTRAL3_ROPE)(k)
    others = ("llama_4_scaling_beta", "max_position_embeddings")
    return {name: value for name, value in parameters.items() if name not in others}


def _ministral3(k: Keys, fields: Fields) -> Fields:
    parameters = rope_or(_MINISTRAL3_ROPE)(k)
    if (growth := parameters.get("llama_4_scaling_beta")) is None:
        return {}
    return {"query_growth": growth, "query_growth_length": parameters.get("original_max_position_embeddings")}


def _hyperclovax(k: Keys, fields: Fields) -> Fields:
    scale = k.number("attention_multiplier", fields["head_size"] ** -0.5)
    return {"attention_scale": scale, "post_norm": k.flag("use_post_norm", True)}


def _cwm(k: Keys, fields: Fields) -> Fields:
    slides = [i % 4 != 0 for i in range(fields["n_layer"])]
    return window_fields(k, len(slides), k.optional_size("sliding_window", 8192), slides)


def _cohere2(k: Keys, fields: Fields) -> Fields:
    """Every `sliding_window_pattern`-th layer attends to all positions and has no RoPE."""
    n_layer, pattern = fields["n_layer"], k.size("sliding_window_pattern", 4)
    slides = [(i + 1) % pattern != 0 for i in range(n_layer)]
    window = window_fields(k, n_layer, k.optional_size("sliding_window", 4096), slides)
    return window | without_rope(n_layer, window)


def exaone4(k: Keys, fields: Fields) -> Fields:
    """As Cohere 2, if there is a sliding window. A pattern may be a string as well, which is written next to `layer_types`."""
    n_layer, window = fields["n_layer"], k.optional_size("sliding_window", 4096)
    if window is None or k.per_layer("layer_types", n_layer):
        slides = [False] * n_layer
        k.unused("sliding_window_pattern")
    else:
        slides = [(i + 1) % k.size("sliding_window_pattern", 4) != 0 for i in range(n_layer)]
    found = window_fields(k, n_layer, window, slides)
    return found if window is None else found | without_rope(n_layer, found)


def granite(k: Keys, fields: Fields) -> Fields:
    return {"logit_scale": 1 / positive("logits_scaling", k.get("logits_scaling", 1.0))}


def hunyuan_rope(k: Keys) -> Fields:
    """`dynamic` with `alpha` is a larger theta at every length; see `hunyuan`."""
    parameters = rope_parameters(k)
    return {"rope_theta": parameters.get("rope_theta")} if _hunyuan_alpha(k) else parameters


def _hunyuan_alpha(k: Keys) -> float | None:
    parameters = rope_parameters(k)
    is_dynamic = "dynamic" in (parameters.get("type"), parameters.get("rope_type"))
    return positive("rope_scaling's alpha", parameters["alpha"]) if is_dynamic and parameters.get("alpha") else None


def hunyuan(k: Keys, fields: Fields) -> Fields:
    alpha, size = _hunyuan_alpha(k), fields["head_size"]
    return {"rope_theta": fields["rope_theta"] * alpha ** (size / (size - 2))} if alpha else {}


def _internlm3(k: Keys, fields: Fields) -> Fields:
    if fields["attn_bias"] != fields["mlp_bias"]:
        raise CheckpointError("qkv_bias and bias differ, which is not supported; transformers has one value for all linears")
    return {}


_OLMO: Fields = {"vocab_size": 50304, "attention_bias": False}
_GLM: Fields = {
    "vocab_size": 151552, "intermediate_size": 13696, "num_hidden_layers": 40, "num_key_value_heads": 2, "head_dim": 128,
    "max_position_embeddings": 131072, "rms_norm_eps": 1.5625e-07, "partial_rotary_factor": 0.5, "attention_bias": True,
}  # fmt: skip
_GLM_FIXED: Fields = {"rope_interleaved": True, "attn_out_bias": False}
_COHERE: Fields = {
    "vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40, "num_attention_heads": 64,
    "max_position_embeddings": 8192, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "attention_bias": False,
    "logit_scale": 0.0625,
}  # fmt: skip
_COHERE_FIXED: Fields = {"norm": "layer", "parallel_residual": True, "shared_attention_norm": True, "rope_interleaved": True}
GRANITE: Fields = {
    "attention_bias": False, "mlp_bias": False, "embedding_multiplier": 1.0, "residual_multiplier": 1.0,
}  # fmt: skip

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
    "olmo3": Family(
        "OLMo 3 7B and 32B",
        _OLMO | {"rms_norm_eps": 1e-5, "rope_theta": 5e5},
        fixed={"pre_norm": False, "post_norm": True, "qk_norm": "row"},
        rope=rope_of_full_layers,
        more=_olmo3,
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
    "helium": Family(
        "Helium 1 2B",
        {"vocab_size": 48000, "hidden_size": 2560, "intermediate_size": 7040, "num_hidden_layers": 24,
         "num_attention_heads": 20, "num_key_value_heads": 20, "head_dim": 128, "max_position_embeddings": 4096,
         "rms_norm_eps": 1e-8, "rope_theta": 1e5, "attention_bias": False, "mlp_bias": False},
        fixed={"rope_interleaved": True, "attn_out_bias": False},
    ),
    "ministral": Family("Ministral 8B", MISTRAL, more=_ministral),
    "ministral3": Family(
        "language models of Ministral 3 3B, 8B and 14B",
        MISTRAL
        | {"vocab_size": 131072, "num_hidden_layers": 34, "head_dim": 128, "max_position_embeddings": 262144,
           "rms_norm_eps": 1e-5, "sliding_window": None},
        rope=_ministral3_rope,
        more=_ministral3,
    ),
    "granite": Family(
        "Granite 3.0 to 3.3 2B and 8B",
        GRANITE | {"attention_multiplier": 1.0},
        more=granite,
    ),
    "hyperclovax": Family(
        "HyperCLOVA X SEED Think 14B",
        GRANITE | {"logit_scale": 1.0},
        spelled={"logit_scale": "logits_scaling"},
        more=_hyperclovax,
    ),
    "cohere": Family(
        "Command R 35B, Command R+ 104B, Aya 23 8B and 35B",
        _COHERE | {"rope_theta": 5e5},
        spelled=LAYER_NORM_EPS,
        fixed=_COHERE_FIXED,
        more=lambda k, fields: {"qk_norm": "heads" if k.flag("use_qk_norm", False) else None},
    ),
    "cohere2": Family(
        "Command R7B, Command A",
        _COHERE,
        spelled=LAYER_NORM_EPS,
        fixed=_COHERE_FIXED,
        more=_cohere2,
    ),
    "glm": Family("GLM-4 9B, GLM-Edge", _GLM, fixed=_GLM_FIXED),
    "glm4": Family("GLM-4-0414 9B and 32B, GLM-Z1", _GLM, fixed={**_GLM_FIXED, "post_norm": True}),
    "seed_oss": Family(
        "Seed-OSS 36B",
        {"vocab_size": 155136, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 80,
         "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 524288, "attention_bias": True,
         "attention_out_bias": False, "mlp_bias": False},
        unused=("residual_dropout",),
    ),
    "ernie4_5": Family(
        "ERNIE 4.5 0.3B",
        {"vocab_size": 103424, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 18,
         "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131072,
         "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "attention_bias": False, "mlp_bias": False},
        spelled={"attention_bias": "use_bias", "mlp_bias": "use_bias"},
        fixed={"rope_interleaved": True},
    ),
    "exaone4": Family(
        "EXAONE 4.0 1.2B and 32B",
        {"vocab_size": 102400, "intermediate_size": 16384, "num_key_value_heads": 32, "rms_norm_eps": 1e-5},
        fixed={"pre_norm": False, "post_norm": True, "qk_norm": "head"},
        more=exaone4,
    ),
    "hunyuan_v1_dense": Family(
        "Hunyuan 0.5B, 1.8B, 4B and 7B, Hunyuan-MT 7B",
        {"vocab_size": 290943, "rms_norm_eps": 1e-5, "attention_bias": False},
        fixed={"qk_norm": "head", "qk_norm_after_rope": True},
        unused=("eod_token_id",),
        rope=hunyuan_rope,
        more=hunyuan,
    ),
    "nemotron": Family(
        "Nemotron 3 8B, Nemotron 4 15B and 340B, Minitron 4B and 8B",
        {"vocab_size": 256000, "hidden_size": 6144, "intermediate_size": 24576, "num_attention_heads": 48,
         "max_position_embeddings": 4096, "hidden_act": "relu2", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5,
         "attention_bias": False, "mlp_bias": False},
        spelled={"rms_norm_eps": "norm_eps"},
        fixed={**PLAIN_LAYER_NORM, "norm": "layer_plus_one"},
    ),
    "arcee": Family(
        "AFM 4.5B",
        {"hidden_size": 2560, "intermediate_size": 18432, "max_position_embeddings": 4096, "hidden_act": "relu2",
         "rms_norm_eps": 1e-5, "attention_bias": False, "mlp_bias": False},
        fixed={"mlp": "plain"},
    ),
    "apertus": Family(
        "Apertus 8B and 70B",
        {"vocab_size": 131072, "intermediate_size": 14336, "max_position_embeddings": 65536, "hidden_act": "xielu",
         "rms_norm_eps": 1e-5, "rope_theta": 1.2e7, "attention_bias": False},
        fixed={"mlp": "plain", "qk_norm": "head"},
        rope=rope_or({"rope_type": "llama3", "rope_theta": 1.2e7, "factor": 8.0, "high_freq_factor": 4.0,
                      "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}),
    ),
    "nanochat": Family(
        "nanochat d20 and d32, as transformers writes them",
        {"vocab_size": 50304, "hidden_size": 768, "intermediate_size": 8192, "num_hidden_layers": 12,
         "num_attention_heads": 6, "hidden_act": "relu2", "final_logit_softcapping": 15.0, "attention_bias": False},
        fixed={"norm": "rms_fixed", "embedding_norm": True, "mlp": "plain", "qk_norm": "head", "qk_norm_after_rope": True,
               "rope_reversed": True},
    ),
    "jais2": Family(
        "Jais 2 8B and 70B",
        {"vocab_size": 150272, "hidden_size": 3328, "intermediate_size": 26624, "num_attention_heads": 26,
         "max_position_embeddings": 8192, "hidden_act": "relu2", "rms_norm_eps": 1e-5, "attention_bias": True,
         "mlp_bias": True},
        spelled=LAYER_NORM_EPS,
        fixed=PLAIN_LAYER_NORM,
    ),
    "cwm": Family(
        "CWM 32B",
        {"vocab_size": 128256, "hidden_size": 6144, "intermediate_size": 21504, "num_hidden_layers": 64,
         "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072,
         "rms_norm_eps": 1e-5, "rope_theta": 1e6, "mlp_bias": False},
        rope=rope_or({"rope_type": "llama3", "rope_theta": 1e6, "factor": 16.0, "high_freq_factor": 4.0,
                      "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}),
        more=_cwm,
    ),
    "internlm3": Family(
        "InternLM3 8B",
        {"vocab_size": 128512, "intermediate_size": 10240, "num_hidden_layers": 48, "num_key_value_heads": 2,
         "head_dim": 128, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "attention_bias": False,
         "mlp_bias": False},
        aliases={"qkv_bias": "attention_bias", "bias": "mlp_bias"},
        more=_internlm3,
    ),
    "iquestcoder": Family(
        "IQuest-Coder-V1 40B",
        {"vocab_size": 76800, "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 80,
         "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072,
         "rms_norm_eps": 1e-5, "attention_bias": False, "mlp_bias": False},
        only={"use_sliding_window": False, "clip_qkv": None},
        unused=("sliding_window", "max_window_layers"),
    ),
}  # fmt: skip
