"""Families with multi-head latent attention."""

import math
from collections.abc import Callable
from dataclasses import replace

from lit_llm.errors import CheckpointError
from lit_llm.model.config_json import Fields, Keys, positive, rope_parameters
from lit_llm.model.families.experts import DEEPSEEK, deepseek, dense_by_type
from lit_llm.model.families.family import Family, rope_or

More = Callable[[Keys, Fields], Fields]


def _latent(nope: int, more: More = lambda k, fields: {}) -> More:
    """Return what reads the keys of latent attention, then those that `more` reads.

    Args:
        nope: Default of the dimensions per head that RoPE does not rotate. Those that it does are upstream's head_dim.
    """

    def fields_of_latent(k: Keys, fields: Fields) -> Fields:
        if fields["rotary_size"] != fields["head_size"]:
            raise CheckpointError(
                f"partial_rotary_factor must be 1 with latent attention, found {fields['rotary_size'] / fields['head_size']}"
            )
        k.unused("num_key_value_heads", "head_dim", "qk_head_dim")
        head_size = k.size("qk_nope_head_dim", nope) + fields["rotary_size"]
        own = {
            "n_query_groups": fields["n_head"],
            "head_size": head_size,
            "attention_scale": head_size**-0.5 * _mscale(k, fields["rope_scaling"]) ** 2,
        }
        return {**own, **more(k, fields | own)}

    return fields_of_latent


def _mscale(k: Keys, scaling: Fields | None) -> float:
    """Return what queries and keys are multiplied by where RoPE is scaled: with `mscale_all_dim` all dimensions are."""
    if scaling is None or not (weight := (rope_parameters(k) | scaling).get("mscale_all_dim")):
        return 1.0
    return 1 + 0.1 * positive("rope_scaling's mscale_all_dim", weight) * max(math.log(scaling["factor"]), 0)


def _deepseek_v2(k: Keys, fields: Fields) -> Fields:
    method = k.only("topk_method", "greedy", "group_limited_greedy")
    if method == "greedy":
        k.unused("n_group", "topk_group")
        groups = {"n_expert_group": 1}
    else:
        groups = {"n_expert_group": k.size("n_group", 0), "n_chosen_group": k.size("topk_group", 0), "n_in_group_score": 1}
    softmax = {"router_score": "softmax", "choice_bias": False, "rope_interleaved": True}
    return {**deepseek(k, fields, 0, 2), **softmax, **groups}


def _deepseek_v3(k: Keys, fields: Fields) -> Fields:
    return {**deepseek(k, fields, 3), **_interleaved(k, fields)}


def _interleaved(k: Keys, fields: Fields) -> Fields:
    return {"rope_interleaved": k.flag("rope_interleave", True)}


def _glm4_moe_lite(k: Keys, fields: Fields) -> Fields:
    dense = dense_by_type(k, fields["n_layer"], 1)
    return {**deepseek(k, fields, 1), **_interleaved(k, fields), "dense_layers": dense}


_MISTRAL4_ROPE: Fields = {
    "rope_type": "yarn", "factor": 128.0, "original_max_position_embeddings": 8192, "beta_fast": 32.0, "beta_slow": 1.0,
    "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip


def _mistral4_rope(k: Keys) -> Fields:
    """The fraction of the head that RoPE rotates follows from the sizes of the head."""
    others = ("llama_4_scaling_beta", "max_position_embeddings", "partial_rotary_factor")
    return {name: value for name, value in rope_or(_MISTRAL4_ROPE)(k).items() if name not in others}


def _mistral4(k: Keys, fields: Fields) -> Fields:
    parameters = rope_or(_MISTRAL4_ROPE)(k)
    growth = parameters.get("llama_4_scaling_beta"), parameters.get("original_max_position_embeddings")
    return {
        **deepseek(k, fields, 0),
        **_interleaved(k, fields),
        "router_score": "softmax",
        "choice_bias": False,
        **({} if growth[0] is None else {"query_growth": growth[0], "query_growth_length": growth[1]}),
    }


def _minicpm3(k: Keys, fields: Fields) -> Fields:
    """The factors of embeddings, residuals and logits, which make a small model train as a large one does."""
    n_embd, n_layer = fields["n_embd"], fields["n_layer"]
    return {
        "v_head_size": k.size("v_head_dim", n_embd // fields["n_head"]),
        "residual_scale": positive("scale_depth", k.nullable("scale_depth", 1.4) or n_layer**0.5) / n_layer**0.5,
        "logit_scale": (k.optional_size("dim_model_base", 256) or n_embd) / n_embd,
    }


_LATENT: Fields = {
    "head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512, "q_lora_rank": 1536, "attention_bias": False,
}  # fmt: skip
_MIXTURE: Fields = {
    "num_local_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4,
}  # fmt: skip
_SPELLED: dict[str, str | None] = {"head_dim": "qk_rope_head_dim"}
_TRAINING = ("aux_loss_alpha", "ep_size", "seq_aux")
_V3 = Family(
    "DeepSeek V3, V3-0324, V3.1 and R1, Moonlight 16B-A3B",
    _LATENT
    | _MIXTURE
    | {"vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
       "num_attention_heads": 128, "max_position_embeddings": 4096},
    spelled=_SPELLED | DEEPSEEK,
    only={"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    unused=(*_TRAINING, "num_nextn_predict_layers"),
    more=_latent(128, _deepseek_v3),
)  # fmt: skip

LATENT: dict[str, Family] = {
    "deepseek_v2": Family(
        "DeepSeek V2, V2.5 and V2-Lite, DeepSeek-Coder V2",
        _LATENT
        | {"vocab_size": 102400, "mlp_bias": False, "num_local_experts": 64, "num_experts_per_tok": None,
           "moe_intermediate_size": 1407, "routed_scaling_factor": 1.0},
        spelled=_SPELLED | DEEPSEEK,
        fixed={"normalize_expert_weights": False},
        only={"moe_layer_freq": 1, "scoring_func": "softmax", "norm_topk_prob": False},
        unused=_TRAINING,
        more=_latent(128, _deepseek_v2),
    ),
    "deepseek_v3": _V3,
    "kimi_k2": replace(_V3, published="Kimi K2, before transformers had it: the code of DeepSeek V3"),
    "glm4_moe_lite": Family(
        "GLM-4.7-Flash",
        _LATENT
        | _MIXTURE
        | {"vocab_size": 154880, "hidden_size": 2048, "intermediate_size": 10240, "num_hidden_layers": 47,
           "num_attention_heads": 20, "max_position_embeddings": 202752, "rms_norm_eps": 1e-5, "q_lora_rank": 768,
           "v_head_dim": 256, "num_local_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 1536,
           "routed_scaling_factor": 1.8, "n_group": 1, "topk_group": 1},
        spelled=_SPELLED | DEEPSEEK,
        only={"topk_method": "noaux_tc"},
        unused=("first_k_dense_replace", "num_nextn_predict_layers"),
        more=_latent(192, _glm4_moe_lite),
    ),
    "mistral4": Family(
        "language model of Mistral Small 4",
        _LATENT
        | _MIXTURE
        | {"vocab_size": 131072, "intermediate_size": 12288, "num_hidden_layers": 36, "max_position_embeddings": 1048576,
           "kv_lora_rank": 256, "q_lora_rank": 1024, "num_local_experts": 128, "num_experts_per_tok": 4,
           "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1},
        spelled=_SPELLED | DEEPSEEK,
        rope=_mistral4_rope,
        more=_latent(64, _mistral4),
    ),
    "youtu": Family(
        "Youtu-LLM 2B",
        _LATENT
        | {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16,
           "max_position_embeddings": 131072, "tie_word_embeddings": True},
        spelled=_SPELLED,
        unused=("embedding_initializer_range",),
        more=_latent(128, _interleaved),
    ),
    "minicpm3": Family(
        "MiniCPM3 4B",
        _LATENT
        | {"vocab_size": 73448, "hidden_size": 2560, "intermediate_size": 6400, "num_hidden_layers": 62,
           "num_attention_heads": 40, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
           "mlp_bias": False, "embedding_multiplier": 12.0, "kv_lora_rank": 256, "q_lora_rank": 768, "head_dim": 32,
           "v_head_dim": 64},
        spelled=_SPELLED | {"embedding_multiplier": "scale_emb"},
        more=_latent(64, _minicpm3),
    ),
}  # fmt: skip
