"""Families with plain MLPs and LayerNorm, among them those with learned positions and with ALiBi."""

from lit_llm.errors import CheckpointError
from lit_llm.model.config_json import Fields, Keys, positive
from lit_llm.model.families.family import (
    ALL_BIASES,
    LAYER_NORM_EPS,
    PLAIN_LAYER_NORM,
    Family,
)
from lit_llm.schema import shown


def _falcon(k: Keys, fields: Fields) -> Fields:
    new, multi_query = k.flag("new_decoder_architecture", False), k.flag("multi_query", True)
    n_head, n_kv_heads = fields["n_head"], k.optional_size("num_kv_heads", None)
    parallel, n_norms = k.flag("parallel_attn", True) or new, k.size("num_ln_in_parallel_attn", 2 if new else 1)
    return {
        "n_query_groups": (n_kv_heads or n_head) if new else 1 if multi_query else n_head,
        "parallel_residual": parallel,
        "shared_attention_norm": parallel and n_norms == 1,
        **_falcon_alibi(k),
    }


def _refined_web(k: Keys, fields: Fields) -> Fields:
    """Falcon 7B (`RefinedWebModel`) and 40B (`RefinedWeb`) as first published, before transformers had them."""
    is_40b, multi_query, n_head = k.get("model_type", None) == "RefinedWeb", k.flag("multi_query", False), fields["n_head"]
    parallel = is_40b or k.flag("parallel_attn", False)
    return {
        "n_query_groups": k.size("n_head_kv", n_head) if is_40b else 1 if multi_query else n_head,
        "parallel_residual": parallel,
        "shared_attention_norm": parallel and not is_40b,
        **_falcon_alibi(k),
    }


def _falcon_alibi(k: Keys) -> Fields:
    """ALiBi takes the place of RoPE."""
    if not k.flag("alibi", False):
        return {}
    return {"alibi": 8.0, "alibi_rounded": True, "rotary_size": 0, "rope_theta": 10000.0, "rope_scaling": None}


def _mpt(k: Keys, fields: Fields) -> Fields:
    attention = Keys(k.object("attn_config"))
    for name, value in _MPT_ATTENTION_ONLY.items():
        attention.only(name, value)
    attention.unused("attn_impl", "attn_uses_sequence_id")
    found = {
        "clip_qkv": attention.number("clip_qkv", None),
        "attention_scale": attention.number("softmax_scale", None),
        "alibi": positive("alibi_bias_max", attention.get("alibi_bias_max", 8)),
    }
    if unknown := attention.unread():
        raise CheckpointError(f"attn_config has keys that are not supported: {shown(unknown)}")
    return found


def _opt(k: Keys, fields: Fields) -> Fields:
    before, width = k.flag("do_layer_norm_before", True), k.size("word_embed_proj_dim", fields["n_embd"])
    affine = k.flag("layer_norm_elementwise_affine", True)
    return {
        "norm": "layer" if affine else "layer_fixed",
        "norm_bias": affine,
        "pre_norm": before,
        "residual_norm": not before,
        "final_norm": before and not k.flag("_remove_final_layer_norm", False),
        "embedding_size": None if width == fields["n_embd"] else width,
    }


def _gpt_neo(k: Keys, fields: Fields) -> Fields:
    """`attention_types` [[["global", "local"], 12]] means 12 times a layer of each kind."""
    n_layer, kinds = fields["n_layer"], []
    wrong = CheckpointError(
        f"attention_types must be a list of pairs of kinds (global, local) and how often they repeat, for {n_layer} layers "
        f"together, found {shown(k.get('attention_types', None))}"
    )
    groups = k.get("attention_types", [[["global", "local"], 12]])
    for group in groups if isinstance(groups, list) else [groups]:
        match group:
            case [[*names], int(times)] if all(name in ("global", "local") for name in names) and 0 <= times <= n_layer:
                kinds += names * times
            case _:
                raise wrong
    if len(kinds) != n_layer:
        raise wrong
    local = [i for i, kind in enumerate(kinds) if kind == "local"]
    return {"sliding_window": k.size("window_size", 256), "sliding_layers": local} if local else {}


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


def _gptj(k: Keys, fields: Fields) -> Fields:
    return {"rotary_size": k.size("rotary_dim", 64)}


def _codegen(k: Keys, fields: Fields) -> Fields:
    if fields["n_head"] % 4:
        raise CheckpointError(f"n_head must be divisible by 4, found {fields['n_head']}: weights are stored in 4 blocks")
    return _gptj(k, fields)


_MPT_ATTENTION_ONLY: Fields = {"attn_type": "multihead_attention", "prefix_lm": False, "qk_ln": False, "alibi": True}

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

_GPTJ: Fields = {
    "keys": _GPT2_KEYS | {
        "vocab_size": 50400, "hidden_size": 4096, "num_hidden_layers": 28, "num_attention_heads": 16,
        "max_position_embeddings": 2048, "hidden_act": "gelu_new", "tie_word_embeddings": False,
    },
    "spelled": _GPT2["spelled"],
    "fixed": {**PLAIN_LAYER_NORM, "mlp_bias": True, "lm_head_bias": True, "parallel_residual": True,
              "shared_attention_norm": True, "rope_interleaved": True},
    "rope": None,
    "only": {"rotary": True, "scale_attn_weights": True},
}  # fmt: skip

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
    "falcon": Family("Falcon 7B, 11B, 40B and 180B, Falcon-RW 1B and 7B", _FALCON_KEYS, **_FALCON, more=_falcon),
    "RefinedWebModel": Family("Falcon 7B as first published, before transformers had it", **_REFINED_WEB),
    "RefinedWeb": Family("Falcon 40B as first published, before transformers had it", **_REFINED_WEB),
    "gpt2": Family(
        "GPT-2 and DistilGPT2",
        _GPT2_KEYS | {"hidden_act": "gelu_new"},
        **_GPT2,
        only={**_GPT2_ONLY, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False},
    ),
    "openai-gpt": Family(
        "GPT-1",
        _GPT2_KEYS | {"vocab_size": 40478, "max_position_embeddings": 512, "hidden_act": "gelu"},
        spelled={**_GPT2["spelled"], "intermediate_size": None, "hidden_act": "afn"},
        fixed={**_GPT2["fixed"], "pre_norm": False, "residual_norm": True, "final_norm": False},
        rope=None,
        # Its own table of activations calls the approximation `gelu`.
        more=lambda k, fields: {"activation": "gelu_tanh"} if fields["activation"] == "gelu" else {},
    ),
    "gpt_neo": Family(
        "GPT-Neo 125M, 1.3B and 2.7B, TinyStories",
        _GPT2_KEYS | {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "hidden_act": "gelu_new",
                      "max_position_embeddings": 2048},
        spelled={**_GPT2["spelled"], "hidden_size": "hidden_size", "num_hidden_layers": "num_layers",
                 "num_attention_heads": "num_heads", "max_position_embeddings": "max_position_embeddings",
                 "intermediate_size": "intermediate_size"},
        fixed={**_GPT2["fixed"], "attn_bias": False, "attention_scale": 1.0},
        rope=None,
        unused=("attention_layers", "embed_dropout", "resid_dropout", "window_size"),
        more=_gpt_neo,
    ),
    "gptj": Family("GPT-J 6B, GPT4All-J, Dolly v1", **_GPTJ, more=_gptj),
    "codegen": Family("CodeGen 350M to 16B", **_GPTJ, more=_codegen),
    "persimmon": Family(
        "Persimmon 8B",
        {"vocab_size": 262144, "intermediate_size": 16384, "num_hidden_layers": 36, "num_attention_heads": 64,
         "max_position_embeddings": 16384, "partial_rotary_factor": 0.5, "hidden_act": "relu2", "rms_norm_eps": 1e-5},
        spelled={**LAYER_NORM_EPS, "head_dim": None, "num_key_value_heads": None},
        fixed={**PLAIN_LAYER_NORM, **ALL_BIASES},
        more=lambda k, fields: {"qk_norm": "head" if k.flag("qk_layernorm", True) else None},
    ),
    "opt": Family(
        "OPT 125M to 66B, Galactica",
        {"vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
         "intermediate_size": 3072, "hidden_act": "relu", "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
         "attention_bias": True, "mlp_bias": True},
        spelled={"intermediate_size": "ffn_dim", "hidden_act": "activation_function", "rms_norm_eps": None, "head_dim": None,
                 "num_key_value_heads": None, "attention_bias": "enable_bias", "mlp_bias": "enable_bias"},
        fixed={"mlp": "plain", "learned_positions": True, "position_offset": 2},
        rope=None,
        unused=("activation_dropout", "dropout", "init_std", "layerdrop", "output_projection", "prefix"),
        more=_opt,
    ),
    "biogpt": Family(
        "BioGPT and BioGPT-Large",
        {"vocab_size": 42384, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
         "intermediate_size": 4096, "max_position_embeddings": 1024, "hidden_act": "gelu", "rms_norm_eps": 1e-5,
         "tie_word_embeddings": True},
        spelled={"rms_norm_eps": None, "head_dim": None, "num_key_value_heads": None},
        fixed={**PLAIN_LAYER_NORM, **ALL_BIASES, "learned_positions": True, "position_offset": 2},
        rope=None,
        unused=("activation_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob", "layer_norm_eps", "layerdrop"),
        more=lambda k, fields: {"scale_embeddings": k.flag("scale_embedding", True)},
    ),
    "bloom": Family(
        "BLOOM 560M to 176B, BLOOMZ",
        {"vocab_size": 250880, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
         "intermediate_size": None, "hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        spelled={"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "max_position_embeddings": "seq_length",
                 "rms_norm_eps": "layer_norm_epsilon", "intermediate_size": None, "hidden_act": None, "head_dim": None,
                 "num_key_value_heads": None},
        aliases={"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
        fixed={**PLAIN_LAYER_NORM, **ALL_BIASES, "embedding_norm": True, "alibi": 8.0},
        rope=None,
        only={"apply_residual_connection_post_layernorm": False},
        unused=("bias_dropout_fusion", "masked_softmax_fusion", "n_inner", "offset_alibi", "skip_bias_add",
                "skip_bias_add_qkv", "slow_but_exact"),
    ),
    "mpt": Family(
        "MPT 7B and 30B, MPT-7B-StoryWriter, Replit Code 3B",
        {"vocab_size": 50368, "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16,
         "intermediate_size": None, "hidden_act": "gelu", "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        spelled={"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
                 "max_position_embeddings": "max_seq_len", "rms_norm_eps": "layer_norm_epsilon", "intermediate_size": None,
                 "hidden_act": None, "head_dim": None, "num_key_value_heads": None},
        aliases={"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"},
        fixed={"norm": "layer", "mlp": "plain"},
        rope=None,
        only={"expansion_ratio": 4, "logit_scale": None, "no_bias": True},
        unused=("emb_init_std", "emb_init_uniform_lim", "emb_pdrop", "embedding_fraction", "fan_mode", "init_config",
                "init_device", "init_div_is_residual", "init_gain", "init_nonlinearity", "init_std", "learned_pos_emb",
                "norm_type", "verbose"),
        more=_mpt,
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
