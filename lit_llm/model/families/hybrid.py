"""Families in which some layers have another part in place of attention."""

from lit_llm.errors import CheckpointError
from lit_llm.model.config_json import Fields, Keys, rope_parameters
from lit_llm.model.families.experts import QWEN_EXPERTS, qwen_dense_layers
from lit_llm.model.families.family import Family
from lit_llm.schema import shown


def layers_of_kind(k: Keys, kind: str, default: list[bool]) -> list[int] | None:
    """Return the layers of a kind other than attention, by `layer_types` or, where it is missing, by `default`."""
    types = k.per_layer("layer_types", len(default))
    if unknown := [found for found in types or () if found not in ("full_attention", kind)]:
        raise CheckpointError(f"layer_types {shown(unknown[0])} is not supported; supported: full_attention, {kind}")
    is_of_kind = default if types is None else [found == kind for found in types]
    return [i for i, found in enumerate(is_of_kind) if found] or None


def _lfm2(k: Keys, fields: Fields) -> Fields:
    n_layer, attends = fields["n_layer"], None if k.get("full_attn_idxs", None) is None else k.integers("full_attn_idxs")
    size = k.optional_size("block_ff_dim", None) or fields["intermediate_size"]
    factor, multiple = k.optional_number("block_ffn_dim_multiplier", 1.0), k.size("block_multiple_of", 256)
    if k.flag("block_auto_adjust_ff_dim", True):
        size = int(2 * size / 3)
        size = size if factor is None else -(-int(factor * size) // multiple) * multiple
    has_convolution = [attends is not None and i not in attends for i in range(n_layer)]
    return {**_convolutions(k, fields, has_convolution), "intermediate_size": size}


def _convolutions(k: Keys, fields: Fields, default: list[bool]) -> Fields:
    return {
        "conv_layers": layers_of_kind(k, "conv", default),
        "tie_embeddings": k.flag("tie_embedding", fields["tie_embeddings"]),
    }


def _lfm2_moe(k: Keys, fields: Fields) -> Fields:
    n_layer, n_dense = fields["n_layer"], k.count("num_dense_layers", 2)
    return {
        **_convolutions(k, fields, [False] * n_layer),
        "choice_bias": k.flag("use_expert_bias", True),
        "dense_layers": list(range(min(n_dense, n_layer))) or None,
    }


def _delta_layers(k: Keys, fields: Fields) -> Fields:
    """Every `full_attention_interval`-th layer has attention."""
    n_layer, interval = fields["n_layer"], k.size("full_attention_interval", 4)
    return {"delta_layers": layers_of_kind(k, "linear_attention", [(i + 1) % interval != 0 for i in range(n_layer)])}


def _with_experts(k: Keys, fields: Fields) -> Fields:
    size = k.size("shared_expert_intermediate_size", 512)
    return {**_delta_layers(k, fields), "shared_expert_size": size, "dense_layers": qwen_dense_layers(k, fields["n_layer"])}


def _one_axis_rope(k: Keys) -> Fields:
    """Text has the same position on all axes of a multimodal RoPE."""
    return {name: value for name, value in rope_parameters(k).items() if not name.startswith("mrope_")}


_DELTA: Fields = {
    "num_key_value_heads": 2, "head_dim": 256, "max_position_embeddings": 32768, "partial_rotary_factor": 0.25,
    "num_attention_heads": 16, "attention_bias": False, "conv_L_cache": 4, "linear_num_value_heads": 32,
    "linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
}  # fmt: skip
_DELTA_EXPERTS: Fields = _DELTA | {"hidden_size": 2048, "moe_intermediate_size": 512}
_DELTA_SPELLED: dict[str, str | None] = {"conv_L_cache": "linear_conv_kernel_dim"}
_DELTA_FIXED: Fields = {"norm": "rms_plus_one", "qk_norm": "head", "attention_gate": True}
_DELTA_ONLY: Fields = {"hidden_act": "silu", "attn_output_gate": True}
_QWEN3_5_UNUSED = ("mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")

_LFM2: Fields = {
    "vocab_size": 65536, "hidden_size": 2560, "intermediate_size": 12288, "num_key_value_heads": 8,
    "max_position_embeddings": 128000, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    "conv_L_cache": 3, "conv_bias": False,
}  # fmt: skip
_LFM2_SPELLED: dict[str, str | None] = {"rms_norm_eps": "norm_eps", "hidden_act": None}
_LFM2_UNUSED = (
    "block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale", "block_use_swiglu", "block_use_xavier_init",
    "conv_dim", "conv_dim_out", "conv_use_xavier_init", "num_heads", "theta", "use_pos_enc",
)  # fmt: skip

HYBRID: dict[str, Family] = {
    "lfm2": Family(
        "LFM2 350M, 700M, 1.2B and 2.6B, LFM2.5 1.2B",
        _LFM2,
        spelled=_LFM2_SPELLED,
        fixed={"qk_norm": "head"},
        unused=_LFM2_UNUSED,
        more=_lfm2,
    ),
    "lfm2_moe": Family(
        "LFM2 8B-A1B",
        _LFM2
        | {"hidden_size": 2048, "intermediate_size": 7168, "num_local_experts": 32, "num_experts_per_tok": 4,
           "moe_intermediate_size": 1792, "norm_topk_prob": True, "routed_scaling_factor": 1.0},
        spelled=_LFM2_SPELLED | QWEN_EXPERTS,
        fixed={"qk_norm": "head", "router_score": "sigmoid"},
        unused=_LFM2_UNUSED,
        more=_lfm2_moe,
    ),
    "qwen3_next": Family(
        "Qwen3-Next 80B-A3B, Qwen3-Coder-Next",
        _DELTA_EXPERTS
        | {"vocab_size": 151936, "intermediate_size": 5632, "num_hidden_layers": 48, "num_local_experts": 512,
           "num_experts_per_tok": 10, "norm_topk_prob": True},
        spelled=_DELTA_SPELLED | QWEN_EXPERTS,
        fixed=_DELTA_FIXED | {"shared_expert_gate": True},
        only=_DELTA_ONLY,
        more=_with_experts,
    ),
    "qwen3_5_text": Family(
        "language models of Qwen3.5 0.8B to 27B",
        _DELTA
        | {"vocab_size": 248320, "intermediate_size": 12288, "num_key_value_heads": 4},
        spelled=_DELTA_SPELLED,
        fixed=_DELTA_FIXED,
        only=_DELTA_ONLY,
        unused=_QWEN3_5_UNUSED,
        rope=_one_axis_rope,
        more=_delta_layers,
    ),
    "qwen3_5_moe_text": Family(
        "language models of Qwen3.5 35B-A3B, 122B-A10B and 397B-A17B",
        _DELTA_EXPERTS
        | {"vocab_size": 248320, "num_hidden_layers": 40, "num_local_experts": 256, "num_experts_per_tok": 8},
        spelled=_DELTA_SPELLED | QWEN_EXPERTS | {"intermediate_size": None},
        fixed=_DELTA_FIXED | {"shared_expert_gate": True},
        only=_DELTA_ONLY,
        unused=(*_QWEN3_5_UNUSED, "intermediate_size"),
        rope=_one_axis_rope,
        more=lambda k, fields: {**_with_experts(k, fields), "dense_layers": None},
    ),
}  # fmt: skip
