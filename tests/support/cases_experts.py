"""Cases of mixtures of experts: name, family, arguments of its transformers configuration next to the common sizes."""

from typing import Any

_PAIR: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2}
_QWEN: dict[str, Any] = {**_PAIR, "moe_intermediate_size": 24}
_DEEPSEEK: dict[str, Any] = {
    "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}  # fmt: skip
_GROUPS: dict[str, Any] = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True}
_LLAMA4: dict[str, Any] = {"num_local_experts": 4, "head_dim": 8, "intermediate_size_mlp": 40}
_ERNIE: dict[str, Any] = {"moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 24}

EXPERTS: list[tuple[str, str, dict[str, Any]]] = [
    ("qwen2_moe", "qwen2_moe", {**_QWEN, "shared_expert_intermediate_size": 40}),
    ("qwen2_moe-window", "qwen2_moe", {
        **_QWEN, "shared_expert_intermediate_size": 16, "norm_topk_prob": True, "num_hidden_layers": 4, "qkv_bias": False,
        "mlp_only_layers": [1], "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 3, "vocab_size": 128}),
    ("olmoe", "olmoe", _PAIR),
    ("olmoe-clip", "olmoe", {**_PAIR, "clip_qkv": 0.5, "norm_topk_prob": True, "num_key_value_heads": 4}),
    ("flex_olmo", "flex_olmo", _PAIR),
    ("flex_olmo-normalized", "flex_olmo", {**_PAIR, "norm_topk_prob": True, "vocab_size": 128}),
    ("phimoe", "phimoe", {"num_local_experts": 4, "attention_bias": True, "lm_head_bias": True}),
    ("phimoe-longrope", "phimoe", {"num_local_experts": 4, "router_jitter_noise": 0.2, "vocab_size": 128, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 3.0, 4.0],
        "original_max_position_embeddings": 40, "short_mscale": 1.24, "long_mscale": 1.24}}),
    ("dots1", "dots1", {**_DEEPSEEK, "n_shared_experts": 2}),
    ("dots1-groups-window", "dots1", {**_DEEPSEEK, **_GROUPS, "sliding_window": 6, "max_window_layers": 1, "vocab_size": 128}),
    ("glm4_moe", "glm4_moe", {**_DEEPSEEK, "attention_bias": True, "use_qk_norm": True}),
    ("glm4_moe-groups", "glm4_moe", {**_DEEPSEEK, **_GROUPS, "partial_rotary_factor": 1.0}),
    ("solar_open", "solar_open", {k: v for k, v in _DEEPSEEK.items() if k != "first_k_dense_replace"} | {"head_dim": 8}),
    ("solar_open-groups", "solar_open", {**_DEEPSEEK, **_GROUPS, "n_shared_experts": 2, "attention_bias": True}),
    ("minimax_m2", "minimax_m2", {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 16, "rotary_dim": 8}),
    ("granitemoe", "granitemoe", {
        "num_local_experts": 6, "embedding_multiplier": 3.0, "logits_scaling": 1.7, "residual_multiplier": 0.6,
        "attention_multiplier": 0.2, "attention_bias": True}),
    ("granitemoeshared", "granitemoeshared", {"num_local_experts": 6, "shared_intermediate_size": 24, "vocab_size": 128}),
    ("granitemoeshared-none", "granitemoeshared", {"num_local_experts": 4, "tie_word_embeddings": True}),
    ("hunyuan_v1_moe", "hunyuan_v1_moe", {"num_experts": 6, "moe_topk": 2, "head_dim": 16}),
    ("hunyuan_v1_moe-lists", "hunyuan_v1_moe", {"num_experts": 4, "moe_topk": [2, 2, 2], "head_dim": 8}),
    ("gpt_oss", "gpt_oss", {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 6}),
    ("gpt_oss-clamped", "gpt_oss", {
        "num_local_experts": 4, "head_dim": 8, "sliding_window": 64, "swiglu_limit": 0.1, "num_experts_per_tok": 3,
        "layer_types": ["full_attention"] * 3, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    ("exaone_moe", "exaone_moe", {
        **_QWEN, "num_shared_experts": 1, "sliding_window": 6, "sliding_window_pattern": 3, "head_dim": 8}),
    ("exaone_moe-groups", "exaone_moe", {
        **_QWEN, "num_experts": 8, "num_shared_experts": 2, "n_group": 4, "topk_group": 2, "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "mlp_layer_types": ["sparse", "dense", "sparse"], "vocab_size": 128}),
    ("mellum", "mellum", {
        **_QWEN, "head_dim": 8, "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    ("mellum-yarn", "mellum", {
        **_QWEN, "head_dim": 16, "attention_bias": True, "mlp_layer_types": ["dense", "sparse", "sparse"],
        "norm_topk_prob": False, "rope_parameters": {
            "full_attention": {
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    ("llama4_text", "llama4_text", {
        **_LLAMA4, "attention_chunk_size": 6, "no_rope_layer_interval": 2, "floor_scale": 4, "attn_scale": 0.5,
        "num_experts_per_tok": 2}),
    ("llama4_text-maverick", "llama4_text", {
        **_LLAMA4, "num_hidden_layers": 4, "no_rope_layers": [1] * 4, "attention_chunk_size": 64,
        "interleave_moe_layer_step": 2, "use_qk_norm": False,
        "attn_temperature_tuning": False, "attention_bias": True, "vocab_size": 128, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16}}),
    ("ernie4_5_moe", "ernie4_5_moe", _ERNIE),
    ("ernie4_5_moe-untied", "ernie4_5_moe", {
        **_ERNIE, "moe_num_shared_experts": 0, "moe_layer_start_index": 0, "moe_layer_interval": 2, "use_bias": True,
        "num_hidden_layers": 4, "tie_word_embeddings": False}),
]  # fmt: skip

# Keys without which upstream cannot build a model.
SIZES_WITHOUT_DEFAULT: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 128, "num_experts_per_tok": 6, "n_shared_experts": 2},
    "glm4_moe": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
}
