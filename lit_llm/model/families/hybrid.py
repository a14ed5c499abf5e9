"""Families in which some layers have another part in place of attention."""

from lit_llm.errors import CheckpointError
from lit_llm.model.config_json import Fields, Keys
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
    return {
        "conv_layers": layers_of_kind(k, "conv", [attends is not None and i not in attends for i in range(n_layer)]),
        "intermediate_size": size,
        "tie_embeddings": k.flag("tie_embedding", fields["tie_embeddings"]),
    }


HYBRID: dict[str, Family] = {
    "lfm2": Family(
        "LFM2 350M, 700M, 1.2B and 2.6B, LFM2.5 1.2B",
        {"vocab_size": 65536, "hidden_size": 2560, "intermediate_size": 12288, "num_key_value_heads": 8,
         "max_position_embeddings": 128000, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
         "conv_L_cache": 3, "conv_bias": False},
        spelled={"rms_norm_eps": "norm_eps", "hidden_act": None},
        fixed={"qk_norm": "head"},
        unused=("block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale", "block_use_swiglu",
                "block_use_xavier_init", "conv_dim", "conv_dim_out", "conv_use_xavier_init", "num_heads", "theta",
                "use_pos_enc"),
        more=_lfm2,
    ),
}  # fmt: skip
