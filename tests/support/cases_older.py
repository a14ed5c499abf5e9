"""Cases of older families, with learned positions or ALiBi: arguments of `Case`."""

from typing import Any

_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 96}
_BLOOM: dict[str, Any] = {"hidden_size": 32, "n_layer": 3, "n_head": 4}
_MPT: dict[str, Any] = {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 96}
_OPT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 64,
}  # fmt: skip
_FALCON: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": True}
_PERSIMMON: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
_GPT_NEO: dict[str, Any] = {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 64}

OLDER: list[tuple[Any, ...]] = [
    ("bloom", "bloom", _BLOOM),
    ("bloom-6-heads", "bloom", {**_BLOOM, "hidden_size": 48, "n_head": 6}, 128),
    ("bloom-first-release", "bloom", _BLOOM, 99, {"n_embed": 32, "num_attention_heads": 4}, ("hidden_size", "n_head", "dtype")),
    ("mpt", "mpt", _MPT),
    ("mpt-clip-6-heads", "mpt", {**_MPT, "d_model": 48, "n_heads": 6, "attn_config": {
        "clip_qkv": 0.5, "softmax_scale": 0.3}}, 128),
    ("falcon-rw", "falcon", {**_FALCON, "multi_query": False, "parallel_attn": False, "bias": True}),
    ("falcon-alibi-multi-query", "falcon", {**_FALCON, "hidden_size": 48, "num_attention_heads": 6}, 128),
    ("opt", "opt", _OPT),
    ("opt-350m", "opt", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}, 128),
    ("galactica", "opt", {**_OPT, "activation_function": "gelu", "enable_bias": False,
         "layer_norm_elementwise_affine": False, "tie_word_embeddings": False}),
    ("biogpt", "biogpt", {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
         "max_position_embeddings": 64}),
    ("openai-gpt", "openai-gpt", _GPT),
    ("gpt_neo", "gpt_neo", {**_GPT_NEO, "attention_types": [[["global", "local"], 2]], "window_size": 6}),
    ("gptj", "gptj", {**_GPT, "rotary_dim": 4}),
    ("gptj-whole-head", "gptj", {**_GPT, "rotary_dim": 8, "n_inner": 40, "tie_word_embeddings": True}, 128),
    ("codegen", "codegen", {**_GPT, "rotary_dim": 4}),
    ("persimmon", "persimmon", _PERSIMMON),
    ("persimmon-without-norms", "persimmon", {**_PERSIMMON, "qk_layernorm": False, "hidden_act": "gelu"}, 128),
    ("gpt_neo-global", "gpt_neo", {**_GPT_NEO, "num_layers": 2, "attention_types": [[["global"], 2]],
         "intermediate_size": 40, "activation_function": "gelu"}, 128),
]  # fmt: skip
