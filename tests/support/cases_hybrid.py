"""Cases with layers without attention: name, family, arguments of its transformers configuration next to the common sizes."""

from typing import Any

_LFM2: dict[str, Any] = {"intermediate_size": 96, "block_multiple_of": 16, "full_attn_idxs": [1]}

HYBRID: list[tuple[str, str, dict[str, Any]]] = [
    ("lfm2", "lfm2", {**_LFM2, "block_ffn_dim_multiplier": 0.7}),
    ("lfm2-bias-untied", "lfm2", {
        "layer_types": ["conv", "conv", "full_attention"], "conv_bias": True, "conv_L_cache": 5, "vocab_size": 128,
        "block_auto_adjust_ff_dim": False, "tie_word_embeddings": False}),
]  # fmt: skip
