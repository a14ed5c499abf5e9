"""Cases with layers without attention: name, family, arguments of its transformers configuration next to the common sizes."""

from typing import Any

_LFM2: dict[str, Any] = {"intermediate_size": 96, "block_multiple_of": 16, "full_attn_idxs": [1]}

_LFM2_MOE: dict[str, Any] = {
    "layer_types": ["conv", "full_attention", "conv"], "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
}  # fmt: skip
# With a small epsilon the norm of a head divides by the product of a query and a key, which may be close to 0: rounding in the
# gradients of either program is then up to 1e-4 of the largest (measured against float64).
_DELTA: dict[str, Any] = {
    "rms_norm_eps": 0.1,
    "num_hidden_layers": 4, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6,
    "linear_value_head_dim": 5, "full_attention_interval": 3,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {
    **_DELTA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 20,
}  # fmt: skip

HYBRID: list[tuple[str, str, dict[str, Any]]] = [
    ("lfm2", "lfm2", {**_LFM2, "block_ffn_dim_multiplier": 0.7}),
    ("lfm2-bias-untied", "lfm2", {
        "layer_types": ["conv", "conv", "full_attention"], "conv_bias": True, "conv_L_cache": 5, "vocab_size": 128,
        "block_auto_adjust_ff_dim": False, "tie_word_embeddings": False}),
    ("lfm2_moe", "lfm2_moe", {**_LFM2_MOE, "num_dense_layers": 1, "routed_scaling_factor": 1.5}),
    ("lfm2_moe-no-bias", "lfm2_moe", {
        **_LFM2_MOE, "num_dense_layers": 0, "use_expert_bias": False, "norm_topk_prob": False, "vocab_size": 128}),
    ("qwen3_next", "qwen3_next", {**_EXPERTS, "mlp_only_layers": [1]}),
    ("qwen3_next-bias", "qwen3_next", {
        **_EXPERTS, "attention_bias": True, "linear_num_value_heads": 2, "linear_conv_kernel_dim": 2, "norm_topk_prob": False,
        "vocab_size": 128, "num_hidden_layers": 3, "layer_types": ["full_attention", "linear_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}}),
    ("qwen3_5_text", "qwen3_5_text", {
        **_DELTA, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1],
            "mrope_interleaved": True}}),
    ("qwen3_5_text-tied", "qwen3_5_text", {**_DELTA, "attention_bias": True, "tie_word_embeddings": True, "vocab_size": 128}),
    ("qwen3_5_moe_text", "qwen3_5_moe_text", {k: v for k, v in _EXPERTS.items() if k != "intermediate_size"}),
]  # fmt: skip
