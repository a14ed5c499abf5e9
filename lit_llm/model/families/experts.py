"""Families with mixtures of experts."""

from lit_llm.errors import CheckpointError
from lit_llm.model.config_json import Fields, Keys, check_size, positive, rope_parameters, window_fields
from lit_llm.model.families.dense import GRANITE, exaone4, granite, hunyuan, hunyuan_rope
from lit_llm.model.families.family import (
    LAYER_NORM,
    MISTRAL,
    QWEN,
    Family,
    local_theta,
    rope_of_full_layers,
    rope_or,
    used_window,
)
from lit_llm.schema import shown


def qwen_dense_layers(k: Keys, n_layer: int) -> list[int] | None:
    step, only_mlp = k.size("decoder_sparse_step", 1), k.integers("mlp_only_layers")
    return [i for i in range(n_layer) if i in only_mlp or (i + 1) % step] or None


def _qwen2_moe(k: Keys, fields: Fields) -> Fields:
    """Before `layer_types` existed, every other layer up to `max_window_layers` had the window."""
    n_layer, window, full = fields["n_layer"], used_window(k, 4096), k.count("max_window_layers", 28)
    slides = [window is not None and i % 2 == 0 and i < full for i in range(n_layer)]
    return {
        "attn_bias": k.flag("qkv_bias", True),
        "shared_expert_size": k.size("shared_expert_intermediate_size", 5632),
        "dense_layers": qwen_dense_layers(k, n_layer),
        **window_fields(k, n_layer, window, slides),
    }


def _qwen3_moe(k: Keys, fields: Fields) -> Fields:
    return {
        "n_expert": k.optional_size("num_local_experts", None) or k.size("num_experts", 128),
        "dense_layers": qwen_dense_layers(k, fields["n_layer"]),
        "sliding_window": used_window(k, 4096),
    }


def deepseek(k: Keys, fields: Fields, n_dense: int, n_shared: int = 1) -> Fields:
    """Sigmoid scores, a bias for the choice, shared experts and MLPs in the first layers, as in DeepSeek V3."""
    n_dense, n_shared = k.count("first_k_dense_replace", n_dense), k.size("n_shared_experts", n_shared)
    return {
        "router_score": "sigmoid",
        "choice_bias": True,
        "shared_expert_size": n_shared * fields["expert_size"],
        "dense_layers": list(range(min(n_dense, fields["n_layer"]))) or None,
    }


def dense_by_type(k: Keys, n_layer: int, n_dense: int) -> list[int] | None:
    """Return the layers with one MLP, by `mlp_layer_types` or, where it is missing, the first `n_dense`."""
    kinds = k.per_layer("mlp_layer_types", n_layer) or ["dense" if i < n_dense else "sparse" for i in range(n_layer)]
    if unknown := [kind for kind in kinds if kind not in ("dense", "sparse")]:
        raise CheckpointError(f"mlp_layer_types {shown(unknown[0])} is not supported; supported: dense, sparse")
    return [i for i, kind in enumerate(kinds) if kind == "dense"] or None


def _exaone_moe(k: Keys, fields: Fields) -> Fields:
    n_dense = k.count("first_k_dense_replace", 1)
    found = {**exaone4(k, fields), **deepseek(k, fields, 1)}
    return found | {"dense_layers": dense_by_type(k, fields["n_layer"], n_dense)}


def _mellum(k: Keys, fields: Fields) -> Fields:
    n_layer = fields["n_layer"]
    window = window_fields(k, n_layer, k.optional_size("sliding_window", 1024), [False] * n_layer)
    theta = local_theta(k, 1e4)
    same = fields["rope_scaling"] is None and fields["rope_theta"] == theta
    return {
        **window,
        "local_rope_theta": None if same or not window else theta,
        "dense_layers": dense_by_type(k, n_layer, 0),
    }


def _solar_open(k: Keys, fields: Fields) -> Fields:
    return {**deepseek(k, fields, 0), "dense_layers": None}


def _dots1(k: Keys, fields: Fields) -> Fields:
    n_layer, window, full = fields["n_layer"], k.optional_size("sliding_window", 4096), k.count("max_window_layers", 62)
    slides = [window is not None and i >= full for i in range(n_layer)]
    return {**deepseek(k, fields, 0), **window_fields(k, n_layer, window, slides)}


def _glm4_moe(k: Keys, fields: Fields) -> Fields:
    return {
        **deepseek(k, fields, 1),
        "attn_out_bias": False,
        "qk_norm": "head" if k.flag("use_qk_norm", False) else None,
    }


def _ernie4_5_moe(k: Keys, fields: Fields) -> Fields:
    n_layer, interval = fields["n_layer"], k.size("moe_layer_interval", 1)
    first, last = k.count("moe_layer_start_index", 1), k.get("moe_layer_end_index", -1)
    if type(last) is not int or last < -1:
        raise CheckpointError(f"moe_layer_end_index must be the index of a layer, or -1, found {shown(last)}")
    last = n_layer - 1 if last == -1 else last
    return {
        "lm_head_bias": fields["mlp_bias"],
        "shared_expert_size": k.count("moe_num_shared_experts", 2) * fields["expert_size"],
        "dense_layers": [i for i in range(n_layer) if (i + 1) % interval or not first <= i <= last] or None,
    }


def _phimoe_rope(k: Keys) -> Fields:
    """The scale of cos and sin is a key of its own, for short and for long inputs."""
    parameters = dict(rope_parameters(k))
    scales = [parameters.pop(key, None) for key in ("short_mscale", "long_mscale")]
    if scales[0] != scales[1]:
        raise CheckpointError(f"rope_scaling's short_mscale and long_mscale must be equal, found {shown(scales)}")
    return parameters if scales[0] is None else parameters | {"attention_factor": scales[0]}


def _minimax_m2_rope(k: Keys) -> Fields:
    """Published files have the number of dimensions that RoPE rotates, not their fraction."""
    rotary_dim = k.optional_size("rotary_dim", None)
    return rope_parameters(k) | ({} if rotary_dim is None else {"partial_rotary_factor": rotary_dim / k.size("head_dim", 128)})


def _granitemoe(k: Keys, fields: Fields) -> Fields:
    return {**granite(k, fields), "expert_size": fields["intermediate_size"]}


def _hunyuan_v1_moe(k: Keys, fields: Fields) -> Fields:
    """Some keys may be lists with an entry for each layer, which are supported if the entries are equal."""
    chosen = k.get("moe_topk", 1)
    if isinstance(chosen, list) and chosen and all(n == chosen[0] for n in chosen):
        chosen = chosen[0]
    size = fields["intermediate_size"]
    return {
        **hunyuan(k, fields),
        "n_expert_per_token": check_size("moe_topk", chosen),
        "expert_size": size,
        "shared_expert_size": size,
    }


def _gpt_oss(k: Keys, fields: Fields) -> Fields:
    slides = [i % 2 == 0 for i in range(fields["n_layer"])]
    window = window_fields(k, len(slides), k.optional_size("sliding_window", 128), slides)
    limit = positive("swiglu_limit", k.get("swiglu_limit", 7.0))
    k.unused("hidden_act", "swiglu_alpha")
    return {**window, "swiglu_limit": limit, "expert_size": fields["intermediate_size"]}


def _llama4_text(k: Keys, fields: Fields) -> Fields:
    """Every fourth layer has no RoPE and attends to all positions, with queries that grow; the others attend in chunks."""
    n_layer, interval, step = fields["n_layer"], k.size("no_rope_layer_interval", 4), k.size("interleave_moe_layer_step", 1)
    rope = k.per_layer("no_rope_layers", n_layer) if k.get("no_rope_layers", None) else None  # 1 where there is RoPE
    rope = [(i + 1) % interval != 0 for i in range(n_layer)] if rope is None else [bool(has) for has in rope]
    kinds = k.per_layer("layer_types", n_layer) or ["chunked_attention" if has else "full_attention" for has in rope]
    if unknown := [kind for kind in kinds if kind not in ("chunked_attention", "full_attention")]:
        raise CheckpointError(f"layer_types {shown(unknown[0])} is not supported; supported: chunked_attention, full_attention")
    chunk, chunked = k.optional_size("attention_chunk_size", 8192), [i for i in range(n_layer) if kinds[i] != "full_attention"]
    if chunked and chunk is None:
        raise CheckpointError("layer_types has chunked_attention, but attention_chunk_size is not set")
    mixtures = k.integers("moe_layers") if k.get("moe_layers", None) is not None else range(step - 1, n_layer, step)
    growth: Fields = {}
    if k.flag("attn_temperature_tuning", True):
        growth = {"query_growth": k.number("attn_scale", 0.1), "query_growth_length": k.size("floor_scale", 8192)}
    k.unused("floor_scale", "attn_scale", "use_qk_norm")
    expert_size = fields["intermediate_size"]
    return {
        **growth,
        "sliding_window": chunk if chunked else None,
        "sliding_layers": chunked or None,
        "no_rope_layers": [i for i in range(n_layer) if not rope[i]] or None,
        "qk_norm": "fixed" if k.flag("use_qk_norm", True) else None,
        "dense_layers": [i for i in range(n_layer) if i not in mixtures] or None,
        "intermediate_size": k.size("intermediate_size_mlp", 16384),
        "expert_size": expert_size,
        "shared_expert_size": expert_size,
    }


_GPT_OSS_ROPE: Fields = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
_GRANITEMOE = GRANITE | {"attention_multiplier": 1.0, "num_local_experts": 8, "num_experts_per_tok": 2}
_MIXTURE: Fields = {"num_local_experts": 8, "num_experts_per_tok": 2}
QWEN_EXPERTS: dict[str, str | None] = {"num_local_experts": "num_experts"}
DEEPSEEK: dict[str, str | None] = {"num_local_experts": "n_routed_experts"}

EXPERTS: dict[str, Family] = {
    "mixtral": Family(
        "Mixtral 8x7B and 8x22B",
        MISTRAL | _MIXTURE | {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "sliding_window": None},
        only={"router_jitter_noise": 0.0},
        more=lambda k, fields: {"expert_size": fields["intermediate_size"]},
    ),
    "phimoe": Family(
        "Phi-3.5-MoE, Phi-tiny-MoE and Phi-mini-MoE",
        MISTRAL
        | {"vocab_size": 32064, "intermediate_size": 6400, "rope_theta": 1e6, "rms_norm_eps": 1e-5, "sliding_window": None,
           "attention_bias": False, "lm_head_bias": False, "num_local_experts": 16, "num_experts_per_tok": 2,
           "router_jitter_noise": 0.01},
        fixed={**LAYER_NORM, "router_score": "sparsemixer"},
        only={"num_experts_per_tok": 2, "input_jitter_noise": 0.0},
        rope=_phimoe_rope,
        more=lambda k, fields: {"expert_size": fields["intermediate_size"]},
    ),
    "qwen2_moe": Family(
        "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
        QWEN
        | {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
           "num_key_value_heads": 16, "num_local_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
           "norm_topk_prob": False},
        spelled=QWEN_EXPERTS,
        fixed={"shared_expert_gate": True},
        more=_qwen2_moe,
    ),
    "qwen3_moe": Family(
        "Qwen3 30B-A3B and 235B-A22B, Qwen3-Coder 30B-A3B",
        QWEN
        | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_key_value_heads": 4,
           "attention_bias": False, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": False},
        fixed={"qk_norm": "head"},
        unused=("max_window_layers",),
        more=_qwen3_moe,
    ),
    "olmoe": Family(
        "OLMoE 1B-7B",
        {"vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16,
         "num_attention_heads": 16, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "attention_bias": False,
         "clip_qkv": None, "num_local_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False},
        spelled=QWEN_EXPERTS,
        fixed={"qk_norm": "row"},
        more=lambda k, fields: {"expert_size": fields["intermediate_size"]},
    ),
    "flex_olmo": Family(
        "FlexOlmo 7x7B",
        {"vocab_size": 100352, "max_position_embeddings": 4096, "rope_theta": 5e5, "attention_bias": False,
         "num_local_experts": 7, "num_experts_per_tok": 5, "norm_topk_prob": False},
        spelled=QWEN_EXPERTS,
        fixed={"qk_norm": "row", "pre_norm": False, "post_norm": True},
        more=lambda k, fields: {"expert_size": fields["intermediate_size"]},
    ),
    "dots1": Family(
        "dots.llm1",
        {"vocab_size": 152064, "hidden_size": 4608, "intermediate_size": 10944, "num_hidden_layers": 62,
         "num_key_value_heads": 32, "attention_bias": False, "num_local_experts": None, "num_experts_per_tok": None,
         "moe_intermediate_size": 1408, "norm_topk_prob": False, "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1},
        spelled=DEEPSEEK,
        fixed={"qk_norm": "head"},
        more=_dots1,
    ),
    "glm4_moe": Family(
        "GLM-4.5, GLM-4.5-Air, GLM-4.6 and 4.7",
        {"vocab_size": 151552, "intermediate_size": 10944, "num_hidden_layers": 46, "num_attention_heads": 96,
         "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5,
         "attention_bias": False, "num_local_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1408,
         "norm_topk_prob": True, "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1},
        spelled=DEEPSEEK,
        unused=("num_nextn_predict_layers",),
        more=_glm4_moe,
    ),
    "solar_open": Family(
        "Solar Open 100B",
        {"vocab_size": 196608, "num_hidden_layers": 48, "num_attention_heads": 64, "num_key_value_heads": 8,
         "head_dim": 128, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
         "attention_bias": False, "num_local_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1280,
         "norm_topk_prob": True, "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1},
        spelled=DEEPSEEK,
        fixed={"attn_out_bias": False},
        unused=("first_k_dense_replace",),
        more=_solar_open,
    ),
    "minimax_m2": Family(
        "MiniMax-M2 and M2.1",
        {"vocab_size": 200064, "hidden_size": 3072, "intermediate_size": 1536, "num_hidden_layers": 62,
         "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 196608,
         "rope_theta": 5e6, "num_local_experts": 256, "num_experts_per_tok": 8},
        fixed={"qk_norm": "row", "router_score": "sigmoid", "choice_bias": True},
        only={"router_jitter_noise": 0.0, "scoring_func": "sigmoid", "use_qk_norm": True, "use_routing_bias": True,
              "qk_norm_type": "per_layer", "shared_intermediate_size": 0},
        unused=("attn_type_list", "mtp_transformer_layers", "num_mtp_modules", "use_mtp"),
        rope=_minimax_m2_rope,
        more=lambda k, fields: {"expert_size": fields["intermediate_size"]},
    ),
    "granitemoe": Family(
        "Granite 3.0 and 3.1 1B-A400M and 3B-A800M",
        {name: value for name, value in _GRANITEMOE.items() if name != "mlp_bias"},
        more=_granitemoe,
    ),
    "granitemoeshared": Family(
        "Granite mixtures with a shared expert",
        {name: value for name, value in _GRANITEMOE.items() if name != "mlp_bias"},
        more=lambda k, fields: {
            **_granitemoe(k, fields), "shared_expert_size": k.count("shared_intermediate_size", 0)
        },
    ),
    "hunyuan_v1_moe": Family(
        "Hunyuan-A13B",
        {"vocab_size": 290943, "rms_norm_eps": 1e-5, "attention_bias": False, "num_local_experts": 1},
        spelled=QWEN_EXPERTS,
        fixed={"qk_norm": "head", "qk_norm_after_rope": True},
        unused=("eod_token_id", "sep_token_id"),
        rope=hunyuan_rope,
        more=_hunyuan_v1_moe,
    ),
    "gpt_oss": Family(
        "gpt-oss 20B and 120B",
        {"vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
         "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
         "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "attention_bias": True, "num_local_experts": 128,
         "num_experts_per_tok": 4},
        fixed={"attention_sinks": True, "router_bias": True, "expert_bias": True, "activation": "quick_gelu"},
        only={"swiglu_alpha": 1.702},
        rope=rope_or(_GPT_OSS_ROPE),
        more=_gpt_oss,
    ),
    "exaone_moe": Family(
        "K-EXAONE 236B-A23B",
        {"vocab_size": 102400, "intermediate_size": 16384, "num_key_value_heads": 32, "rms_norm_eps": 1e-5,
         "num_local_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 1024, "norm_topk_prob": True,
         "routed_scaling_factor": 2.5, "n_group": 1, "topk_group": 1},
        spelled=QWEN_EXPERTS,
        aliases={"num_shared_experts": "n_shared_experts"},
        fixed={"qk_norm": "head"},
        unused=("num_nextn_predict_layers",),
        more=_exaone_moe,
    ),
    "mellum": Family(
        "Mellum 2 12B-A2.5B",
        {"vocab_size": 98304, "hidden_size": 2304, "intermediate_size": 7168, "num_hidden_layers": 28,
         "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 131072, "rope_theta": 5e5,
         "attention_bias": False, "num_local_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 896,
         "norm_topk_prob": True},
        aliases={"num_experts": "num_local_experts"},
        fixed={"qk_norm": "head"},
        unused=("num_nextn_predict_layers", "num_mtp_layers", "mtp_layer_types", "mtp_mlp_layer_types"),
        rope=rope_of_full_layers,
        more=_mellum,
    ),
    "llama4_text": Family(
        "Llama 4 Scout and Maverick",
        {"vocab_size": 202048, "hidden_size": 5120, "intermediate_size": 8192, "num_hidden_layers": 48,
         "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072,
         "rms_norm_eps": 1e-5, "rope_theta": 5e5, "attention_bias": False, "num_local_experts": 16, "num_experts_per_tok": 1},
        fixed={"rope_interleaved": True, "chunked": True, "router_score": "sigmoid",
               "normalize_expert_weights": False, "weigh_expert_inputs": True, "query_growth_offset": 1,
               "query_growth_without_rope": True},
        only={"router_jitter_noise": 0.0},
        unused=("for_llm_compressor",),
        more=_llama4_text,
    ),
    "ernie4_5_moe": Family(
        "ERNIE-4.5 21B-A3B and 300B-A47B",
        {"vocab_size": 103424, "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 28,
         "num_attention_heads": 20, "num_key_value_heads": 4, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
         "rope_theta": 5e5, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
         "num_local_experts": 64, "num_experts_per_tok": 6, "moe_intermediate_size": 1536},
        spelled={"attention_bias": "use_bias", "mlp_bias": "use_bias", "num_local_experts": "moe_num_experts",
                 "num_experts_per_tok": "moe_k"},
        fixed={"choice_bias": True, "rope_interleaved": True},
        only={"moe_norm_min": 1e-12},
        more=_ernie4_5_moe,
    ),
}  # fmt: skip
