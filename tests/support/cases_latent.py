"""Cases of multi-head latent attention: name, family, arguments of its transformers configuration next to the common sizes."""

from typing import Any

from transformers import AutoModelForCausalLM, Mistral4Config, Mistral4ForCausalLM

AutoModelForCausalLM.register(Mistral4Config, Mistral4ForCausalLM, exist_ok=True)  # its table lacks this text part

_LATENT: dict[str, Any] = {
    "kv_lora_rank": 12, "q_lora_rank": 20, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 10,
    "num_key_value_heads": 4,
}  # fmt: skip
_MIXTURE: dict[str, Any] = {
    **_LATENT, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
}  # fmt: skip
MOONLIGHT: dict[str, Any] = {
    **_MIXTURE, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "rope_interleave": False, "attention_bias": True,
    "n_shared_experts": 2, "norm_topk_prob": False, "rms_norm_eps": 1e-3,
}  # fmt: skip
_YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}

LATENT: list[tuple[str, str, dict[str, Any]]] = [
    ("deepseek_v2", "deepseek_v2", {
        **_MIXTURE, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.6,
        "attention_bias": True, "mlp_bias": True}),
    ("deepseek_v2-lite", "deepseek_v2", {
        **_MIXTURE, "q_lora_rank": None, "vocab_size": 128,
        "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.8}}),
    ("deepseek_v3", "deepseek_v3", {
        **_MIXTURE, "n_group": 4, "topk_group": 2, "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    ("moonlight", "deepseek_v3", MOONLIGHT),
    ("glm4_moe_lite", "glm4_moe_lite", {k: v for k, v in _MIXTURE.items() if k != "first_k_dense_replace"}),
    ("glm4_moe_lite-layers", "glm4_moe_lite", {
        **{k: v for k, v in _MIXTURE.items() if k != "first_k_dense_replace"}, "attention_bias": True,
        "mlp_layer_types": ["sparse", "dense", "sparse"], "vocab_size": 128}),
    ("mistral4", "mistral4", {**_MIXTURE, "rope_parameters": {
        **_YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}}),
    ("youtu", "youtu", _LATENT),
    ("youtu-bias-untied", "youtu", {**_LATENT, "q_lora_rank": None, "attention_bias": True, "tie_word_embeddings": False}),
    ("minicpm3", "minicpm3", _LATENT),
    ("minicpm3-unscaled", "minicpm3", {
        **_LATENT, "attention_bias": True, "mlp_bias": True, "scale_depth": None, "dim_model_base": None, "scale_emb": 1,
        "tie_word_embeddings": False, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1], "long_factor": [1.5, 3.0],
            "original_max_position_embeddings": 40}}),
]  # fmt: skip
