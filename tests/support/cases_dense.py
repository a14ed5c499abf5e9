"""Cases of dense families after Llama: name, family, arguments of its transformers configuration next to the common sizes."""

from typing import Any

_WINDOWS = {"num_hidden_layers": 4, "sliding_window": 6}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
_MULTIPLIERS = {"embedding_multiplier": 3.0, "logits_scaling": 1.7, "residual_multiplier": 0.6, "attention_multiplier": 0.2}

# Keys without which transformers cannot build a model.
NEEDED: dict[str, dict[str, Any]] = {
    "ministral": {"head_dim": 128},
    "hunyuan_v1_dense": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
}

DENSE: list[tuple[str, str, dict[str, Any]]] = [
    ("helium", "helium", {"head_dim": 8}),
    ("helium-bias", "helium", {"head_dim": 8, "attention_bias": True, "mlp_bias": True, "vocab_size": 128}),
    ("olmo3", "olmo3", _WINDOWS),
    (
        "olmo3-yarn", "olmo3",
        {**_WINDOWS, "rope_parameters": {"full_attention": _YARN, "sliding_attention": {"rope_type": "default"}}},
    ),
    ("ministral", "ministral", {
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"], "sliding_window": 6, "head_dim": 8}),
    ("ministral-window", "ministral", {"sliding_window": 7, "head_dim": 16}),
    ("ministral3", "ministral3", {"head_dim": 8, "rope_parameters": {**_YARN, "llama_4_scaling_beta": 0.4}}),
    (
        "ministral3-mscale", "ministral3",
        {"head_dim": 16, "sliding_window": 9, "rope_parameters": {
            **_YARN, "original_max_position_embeddings": 4, "mscale": 1.0, "mscale_all_dim": 0.5, "llama_4_scaling_beta": 0.2}},
    ),
    ("granite", "granite", _MULTIPLIERS),
    ("granite-bias-tied", "granite", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("hyperclovax", "hyperclovax", _MULTIPLIERS),
    ("hyperclovax-no-post-norm", "hyperclovax", {"use_post_norm": False, "head_dim": 16}),
    ("cohere", "cohere", {"logit_scale": 0.3}),
    ("cohere-bias-untied", "cohere", {"attention_bias": True, "tie_word_embeddings": False, "vocab_size": 128}),
    ("command-r-plus", "cohere", {"use_qk_norm": True}),
    ("cohere2", "cohere2", _WINDOWS),
    ("cohere2-layer-types", "cohere2", {
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"], "sliding_window": 5, "logit_scale": 0.5}),
    ("glm", "glm", {"head_dim": 16}),
    ("glm-whole-head", "glm", {"head_dim": 8, "attention_bias": False, "partial_rotary_factor": 1.0}),
    ("glm4", "glm4", {"head_dim": 16, "vocab_size": 128}),
    ("seed_oss", "seed_oss", {"head_dim": 16}),
    ("seed_oss-out-bias", "seed_oss", {
        "head_dim": 8, "attention_bias": False, "attention_out_bias": True, "mlp_bias": True}),
    ("ernie4_5", "ernie4_5", {"head_dim": 16}),
    ("ernie4_5-bias-untied", "ernie4_5", {"head_dim": 8, "use_bias": True, "tie_word_embeddings": False}),
    ("exaone4", "exaone4", _WINDOWS),
    ("exaone4-1.2b", "exaone4", {
        "sliding_window": None, "layer_types": ["full_attention"] * 3, "tie_word_embeddings": True}),
    ("exaone4-32b", "exaone4", {
        "sliding_window": 5, "sliding_window_pattern": "LLG",
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}),
    ("hunyuan_v1_dense", "hunyuan_v1_dense", {"head_dim": 16}),
    ("hunyuan-alpha", "hunyuan_v1_dense", {
        "head_dim": 8, "attention_bias": True, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0, "rope_theta": 1e4}}),
    ("nemotron", "nemotron", {}),
    ("nemotron-bias", "nemotron", {"attention_bias": True, "mlp_bias": True, "head_dim": 16, "tie_word_embeddings": True}),
    ("arcee", "arcee", {}),
    ("arcee-yarn", "arcee", {"rope_parameters": _YARN, "mlp_bias": True, "attention_bias": True}),
    ("apertus", "apertus", {}),
    ("apertus-silu-bias", "apertus", {"hidden_act": "silu", "attention_bias": True, "tie_word_embeddings": True}),
    ("nanochat", "nanochat", {"final_logit_softcapping": 1.5}),
    ("nanochat-bias", "nanochat", {"attention_bias": True, "final_logit_softcapping": None, "tie_word_embeddings": True}),
    ("jais2", "jais2", {}),
    ("cwm", "cwm", {**_WINDOWS, "head_dim": 8}),
    ("internlm3", "internlm3", {"head_dim": 16}),
    ("iquestcoder", "iquestcoder", {"head_dim": 16}),
    ("vaultgemma", "vaultgemma", {
        "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 0.7,
        "final_logit_softcapping": 1.5}),
]  # fmt: skip
