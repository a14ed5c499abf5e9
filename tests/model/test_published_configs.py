"""Sizes of published checkpoints: tables of facts collected elsewhere, which are no part of the project."""

import csv
import json

import pytest
import torch
from cases_dense import DENSE, NEEDED
from cases_experts import EXPERTS, SIZES_WITHOUT_DEFAULT
from cases_latent import LATENT
from published import config_of_2023, family_of, hf_config

from lit_llm.model.config import Config
from lit_llm.model.gpt import GPT


def _count(config: Config) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GPT(config).parameters())


def test_parameter_counts_of_checkpoints_of_2023(shared_data):
    rows = json.loads((shared_data / "config_facts" / "lit_gpt_2023.json").read_text())
    counts: dict[str, int] = {}  # many fine-tunes share their base's sizes
    for row in rows:
        hf = config_of_2023(row)
        key = json.dumps(hf, sort_keys=True)
        if key not in counts:
            counts[key] = _count(Config.from_hf(hf))
        assert counts[key] == row["counts"]["full"], row["name"]


def test_config_rows_of_published_checkpoints(shared_data):
    with (shared_data / "config_facts" / "configs.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    skipped = []
    for row in rows:
        kind = row["type/notes"]
        family = family_of(row["checkpoint"]) if "/" in kind else {"phi-msft": "phi"}.get(kind, kind)
        if family == "qwen":  # the first generation, whose code is not part of transformers
            skipped.append(row["checkpoint"])
            continue
        head_dim, fraction = int(row["head_dim"]), float(row["rotary_pct"])
        sizes = {"kv": int(row["kv"]), "vocab": int(row["vocab(padded)"]), "ffn": int(row["ffn"]), "context": int(row["ctx"])}
        hf = hf_config(
            family,
            **sizes,
            width=int(row["d_model"]),
            layers=int(row["layers"]),
            heads=int(row["heads"]),
            rotary_fraction=fraction,
            theta=float(row["rope_theta"] or 10000),
        )
        if head_dim * hf["num_attention_heads"] != hf["hidden_size"]:
            hf["head_dim"] = head_dim
        scaling = row["rope_scaling"]
        if "longrope" in scaling:
            lists = {name: [1.0] * (head_dim // 2) for name in ("short_factor", "long_factor")}
            hf["rope_scaling"] = {"type": "longrope", **lists}
        elif scaling.startswith("linear"):
            factor = float(scaling.partition("=")[2])
            hf["rope_scaling"] = {"type": "linear", "factor": factor}
            hf["max_position_embeddings"] = int(sizes["context"] / factor)  # the table has the extended context
        elif scaling:
            fields = dict(field.split("=") for field in scaling.split(","))
            hf["rope_scaling"] = {key: value if key == "rope_type" else float(value) for key, value in fields.items()}
            hf["rope_scaling"]["original_max_position_embeddings"] = 8192
        if row["tied"]:
            hf["tie_word_embeddings"] = row["tied"] == "True"
        config = Config.from_hf(hf)
        assert config.n_embd == hf["hidden_size"], row["checkpoint"]
        assert config.n_query_groups == sizes["kv"], row["checkpoint"]
        assert config.head_size == head_dim, row["checkpoint"]
        assert config.intermediate_size == sizes["ffn"], row["checkpoint"]
        assert config.block_size == sizes["context"], row["checkpoint"]
        assert config.rotary_size == int(head_dim * fraction), row["checkpoint"]
    assert len(skipped) == 1


# Every family and its main variants, with just the keys that differ from upstream's defaults.
_REFERENCE = [
    ("llama", {"num_key_value_heads": 8, "vocab_size": 128256, "intermediate_size": 14336}),
    ("smollm3", {}),
    ("mistral", {}),
    ("mixtral", {"num_hidden_layers": 4}),
    ("qwen2", {"tie_word_embeddings": True, "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2}),
    ("qwen3", {"num_key_value_heads": 8}),
    ("qwen3_moe", {"num_hidden_layers": 3, "head_dim": 128, "mlp_only_layers": [1]}),
    ("gemma", {}),
    ("gemma2", {}),
    ("gemma3_text", {}),
    ("phi", {}),
    ("phi3", {}),
    ("olmo", {}),
    ("olmo2", {}),
    ("stablelm", {"use_qkv_bias": True}),
    ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True, "num_key_value_heads": 8}),
    ("gpt_neox", {}),
    ("falcon", {}),
    ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 8, "num_attention_heads": 64, "hidden_size": 4096}),
    ("gpt2", {}),
    ("gpt_bigcode", {}),
    ("gpt_bigcode", {"multi_query": False}),
    *((family, NEEDED.get(family, {})) for family in dict.fromkeys(family for _, family, _ in DENSE)),
    ("bloom", {}),
    ("mpt", {}),
    ("opt", {}),
    ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 512, "hidden_size": 1024, "num_attention_heads": 16}),
    ("biogpt", {}),
    ("openai-gpt", {}),
    ("gpt_neo", {}),
    ("gptj", {}),
    ("codegen", {}),
    ("persimmon", {}),
    *(
        (family, {"num_hidden_layers": 3, **SIZES_WITHOUT_DEFAULT.get(family, {})})
        for family in dict.fromkeys(family for _, family, _ in [*EXPERTS, *LATENT])
    ),
]


@pytest.mark.parametrize(("family", "changes"), _REFERENCE)
def test_missing_keys_take_upstreams_defaults(family, changes):
    """A config.json with nothing but `model_type` describes the same model to transformers and to us."""
    from transformers import AutoConfig, AutoModelForCausalLM

    reference = AutoConfig.for_model(family, **changes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(reference)
    ours = Config.from_hf({"model_type": family, **changes})
    assert ours == Config.from_hf({**reference.to_dict(), "model_type": family})
    assert _count(ours) == sum(p.numel() for p in model.parameters() if p.requires_grad)  # a choice bias does not
