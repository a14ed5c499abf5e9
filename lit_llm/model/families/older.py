"""Families with plain MLPs and LayerNorm, and those with learned positions."""

from lit_llm.errors import CheckpointError
from lit_llm.model.config_json import Fields, Keys
from lit_llm.model.families.family import ALL_BIASES, LAYER_NORM_EPS, PLAIN_LAYER_NORM, Family


def _falcon(k: Keys, fields: Fields) -> Fields:
    _refuse_alibi(k)
    new, multi_query = k.flag("new_decoder_architecture", False), k.flag("multi_query", True)
    n_head, n_kv_heads = fields["n_head"], k.optional_size("num_kv_heads", None)
    parallel, n_norms = k.flag("parallel_attn", True) or new, k.size("num_ln_in_parallel_attn", 2 if new else 1)
    return {
        "n_query_groups": (n_kv_heads or n_head) if new else 1 if multi_query else n_head,
        "parallel_residual": parallel,
        "shared_attention_norm": parallel and n_norms == 1,
    }


def _refined_web(k: Keys, fields: Fields) -> Fields:
    """Falcon 7B (`RefinedWebModel`) and 40B (`RefinedWeb`) as first published, before transformers had them."""
    _refuse_alibi(k)
    is_40b, multi_query, n_head = k.get("model_type", None) == "RefinedWeb", k.flag("multi_query", False), fields["n_head"]
    parallel = is_40b or k.flag("parallel_attn", False)
    return {
        "n_query_groups": k.size("n_head_kv", n_head) if is_40b else 1 if multi_query else n_head,
        "parallel_residual": parallel,
        "shared_attention_norm": parallel and not is_40b,
    }


def _refuse_alibi(k: Keys) -> None:
    if k.flag("alibi", False):
        raise CheckpointError(
            "Falcon with ALiBi positions (falcon-rw) is not supported; the RoPE models (7B, 11B, 40B, 180B) are"
        )


_FALCON: Fields = {
    "spelled": {
        "intermediate_size": "ffn_hidden_size", "hidden_act": "activation", "rms_norm_eps": "layer_norm_epsilon",
        "attention_bias": "bias", "mlp_bias": "bias", "head_dim": None, "num_key_value_heads": None,
    },
    "fixed": PLAIN_LAYER_NORM,
}  # fmt: skip
_FALCON_KEYS: Fields = {
    "vocab_size": 65024, "hidden_size": 4544, "num_attention_heads": 71, "intermediate_size": None, "hidden_act": "gelu",
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
_REFINED_WEB = {
    **_FALCON,
    "keys": _FALCON_KEYS | {"vocab_size": 250880, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8},
    "spelled": {**_FALCON["spelled"], "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    "only": {"apply_residual_connection_post_layernorm": False},
    "more": _refined_web,
}

_GPT2: Fields = {
    "spelled": {
        "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions", "intermediate_size": "n_inner", "hidden_act": "activation_function",
        "rms_norm_eps": "layer_norm_epsilon", "head_dim": None, "num_key_value_heads": None,
    },
    "fixed": {**PLAIN_LAYER_NORM, **ALL_BIASES, "learned_positions": True},
    "rope": None,
}  # fmt: skip
_GPT2_KEYS: Fields = {
    "vocab_size": 50257, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": None,
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip
_GPT2_ONLY: Fields = {"scale_attn_weights": True, "add_cross_attention": False}

OLDER: dict[str, Family] = {
    "phi": Family(
        "Phi-1, Phi-1.5 and Phi-2",
        {"vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
         "partial_rotary_factor": 0.5, "hidden_act": "gelu_new", "rms_norm_eps": 1e-5},
        spelled=LAYER_NORM_EPS,
        fixed={**PLAIN_LAYER_NORM, **ALL_BIASES, "lm_head_bias": True, "parallel_residual": True,
               "shared_attention_norm": True},
        more=lambda k, fields: {"qk_norm": "head" if k.flag("qk_layernorm", False) else None},
    ),
    "gpt_neox": Family(
        "Pythia, GPT-NeoX 20B, Dolly v2, RedPajama-INCITE, StableLM alpha, StableCode alpha",
        {"vocab_size": 50432, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44,
         "num_attention_heads": 64, "partial_rotary_factor": 0.25, "attention_bias": True, "use_parallel_residual": True,
         "hidden_act": "gelu", "rms_norm_eps": 1e-5},
        spelled={**LAYER_NORM_EPS, "rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
        fixed={**PLAIN_LAYER_NORM, "mlp_bias": True},
        more=lambda k, fields: {"n_query_groups": fields["n_head"]},
    ),
    "falcon": Family("Falcon 7B, 11B, 40B and 180B", _FALCON_KEYS, **_FALCON, more=_falcon),
    "RefinedWebModel": Family("Falcon 7B as first published, before transformers had it", **_REFINED_WEB),
    "RefinedWeb": Family("Falcon 40B as first published, before transformers had it", **_REFINED_WEB),
    "gpt2": Family(
        "GPT-2 and DistilGPT2",
        _GPT2_KEYS | {"hidden_act": "gelu_new"},
        **_GPT2,
        only={**_GPT2_ONLY, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False},
    ),
    "gpt_bigcode": Family(
        "SantaCoder, StarCoder, StarCoderBase, TinyStarCoder",
        _GPT2_KEYS | {"hidden_act": "gelu_pytorch_tanh"},
        **_GPT2,
        only=_GPT2_ONLY,
        unused=("num_key_value_heads",),  # follows from multi_query
        more=lambda k, fields: {"n_query_groups": 1} if k.flag("multi_query", True) else {},
    ),
    "starcoder2": Family(
        "StarCoder2 3B, 7B and 15B",
        {"vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30,
         "num_attention_heads": 24, "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": True,
         "attention_bias": True, "mlp_bias": True, "sliding_window": None, "hidden_act": "gelu_pytorch_tanh",
         "rms_norm_eps": 1e-5},
        spelled={"rms_norm_eps": "norm_epsilon", "attention_bias": "use_bias", "mlp_bias": "use_bias"},
        fixed=PLAIN_LAYER_NORM,
        unused=("residual_dropout", "embedding_dropout"),
    ),
}  # fmt: skip
