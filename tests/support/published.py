"""Configs of published checkpoints."""

from typing import Any

# Family of a checkpoint whose row does not say it, by a part of its name.
_BY_NAME = {
    "Phi-3": "phi3",
    "phi": "phi",
    "falcon": "falcon",
    "stablelm-3b": "stablelm",
    "pythia": "gpt_neox",
    "dolly": "gpt_neox",
    "RedPajama": "gpt_neox",
    "stablelm": "gpt_neox",
    "stablecode": "gpt_neox",
    "Mixtral": "mixtral",
    "Mistral": "mistral",
    "gemma": "gemma",
    "Qwen2.5": "qwen2",
    "Qwen3": "qwen3",
    "OLMo": "olmo",
}


def family_of(name: str) -> str:
    return next((family for part, family in _BY_NAME.items() if part in name), "llama")


def hf_config(
    family: str, *, vocab: int, width: int, layers: int, heads: int, kv: int, ffn: int, context: int, **facts: Any
) -> dict[str, Any]:
    """Sizes in the key names of a family's first releases."""
    hf = {
        "model_type": family,
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
        **facts,
    }
    fraction, theta = hf.pop("rotary_fraction"), hf.pop("theta")
    if family == "falcon":
        new = kv > 1
        return {**hf, "new_decoder_architecture": new, "num_kv_heads": kv, "multi_query": True, "ffn_hidden_size": ffn}
    hf |= {"intermediate_size": ffn}
    if family == "gpt_neox":
        return {**hf, "rotary_pct": fraction, "rotary_emb_base": theta}
    return {**hf, "num_key_value_heads": kv, "partial_rotary_factor": fraction, "rope_theta": theta}


def config_of_2023(row: dict[str, Any]) -> dict[str, Any]:
    """`config.json` of a row of lit_gpt_2023.json, embeddings untied."""
    family = family_of(row["name"])
    hf = hf_config(
        family,
        vocab=row["padded_vocab_size"],
        width=row["n_embd"],
        layers=row["n_layer"],
        heads=row["n_head"],
        kv=row["n_query_groups"],
        ffn=row["intermediate_size"],
        context=row["block_size"],
        rotary_fraction=row["rotary_percentage"],
        theta=row["rope_base"],
        tie_word_embeddings=False,
    )
    if family == "gpt_neox":
        hf["use_parallel_residual"] = row["parallel_residual"]
    if row["rope_condense_ratio"] != 1:
        hf["rope_scaling"] = {"type": "linear", "factor": row["rope_condense_ratio"]}
    return hf
