"""Checkpoints in Lit-GPT's layout."""

import json

import torch
import yaml
from families import BY_NAME, make_reference
from tiny import make_tokenizer

_LLAMA = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "parallel_residual": False, "bias": False}
_LLAMA |= {"rotary_percentage": 1.0, "intermediate_size": 48, "n_query_groups": 2, "norm_eps": 1e-6}
_MIXTRAL = {
    **_LLAMA,
    "mlp_class_name": "LLaMAMoE",
    "norm_eps": 1e-5,
    "rope_base": 1000000,
    "n_expert": 4,
    "n_expert_per_token": 2,
}
_FALCON = {"rotary_percentage": 1.0, "parallel_residual": True, "bias": False, "n_query_groups": 1}
_LAYER = "transformer.h.{}."


# Their configuration of each tiny model, and their name for each of its modules.
SIZES = {"block_size": 64, "vocab_size": 99, "padded_vocab_size": 99, "n_layer": 3, "n_head": 4, "n_embd": 32}


CONFIGS = {
    "gpt_neox": {"rotary_percentage": 0.25, "intermediate_size": 48},
    "llama": _LLAMA,
    "llama-linear": {**_LLAMA, "rope_condense_ratio": 4},
    "llama3.1": {
        **_LLAMA,
        "rope_base": 500000,
        "rope_adjustments": {
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_seq_len": 16,
        },
    },
    "qwen2": {**_LLAMA, "attn_bias": True},
    "mixtral": _MIXTRAL,
    "falcon-7b": {**_FALCON, "shared_attention_norm": True},
    "falcon-40b": {**_FALCON, "n_query_groups": 2},
}


NAMES = {
    "gpt_neox": {
        "gpt_neox.embed_in": "transformer.wte",
        "gpt_neox.layers.{}.input_layernorm": _LAYER + "norm_1",
        "gpt_neox.layers.{}.attention.dense": _LAYER + "attn.proj",
        "gpt_neox.layers.{}.post_attention_layernorm": _LAYER + "norm_2",
        "gpt_neox.layers.{}.mlp.dense_h_to_4h": _LAYER + "mlp.fc",
        "gpt_neox.layers.{}.mlp.dense_4h_to_h": _LAYER + "mlp.proj",
        "gpt_neox.final_layer_norm": "transformer.ln_f",
        "embed_out": "lm_head",
    },
    "llama": {
        "model.embed_tokens": "transformer.wte",
        "model.layers.{}.input_layernorm": _LAYER + "norm_1",
        "model.layers.{}.self_attn.o_proj": _LAYER + "attn.proj",
        "model.layers.{}.post_attention_layernorm": _LAYER + "norm_2",
        "model.layers.{}.mlp.gate_proj": _LAYER + "mlp.fc_1",
        "model.layers.{}.mlp.up_proj": _LAYER + "mlp.fc_2",
        "model.layers.{}.mlp.down_proj": _LAYER + "mlp.proj",
        "model.layers.{}.block_sparse_moe.gate": _LAYER + "mlp.gate",
        "model.norm": "transformer.ln_f",
        "lm_head": "lm_head",
        **{
            f"model.layers.{{}}.block_sparse_moe.experts.{e}.{theirs}": f"{_LAYER}mlp.experts.{e}.{ours}"
            for e in range(4)
            for theirs, ours in (("w1", "fc_1"), ("w3", "fc_2"), ("w2", "proj"))
        },
    },
    "falcon": {
        "transformer.word_embeddings": "transformer.wte",
        "transformer.h.{}.input_layernorm": _LAYER + "norm_1",
        "transformer.h.{}.ln_attn": _LAYER + "norm_1",
        "transformer.h.{}.ln_mlp": _LAYER + "norm_2",
        "transformer.h.{}.self_attention.dense": _LAYER + "attn.proj",
        "transformer.h.{}.mlp.dense_h_to_4h": _LAYER + "mlp.fc",
        "transformer.h.{}.mlp.dense_4h_to_h": _LAYER + "mlp.proj",
        "transformer.ln_f": "transformer.ln_f",
        "lm_head": "lm_head",
    },
}
NAMES |= {"mixtral": NAMES["llama"], "qwen2": NAMES["llama"]}


def qkv(hf, i, kind, config):
    """q, k and v as lists of heads' rows: (n_head, n_query_groups, n_query_groups)."""
    llama = [hf.get(f"model.layers.{i}.self_attn.{part}_proj.{kind}") for part in "qkv"]
    if llama[0] is not None:
        return llama
    fused = hf.get(f"gpt_neox.layers.{i}.attention.query_key_value.{kind}")
    if fused is None:
        fused = hf.get(f"transformer.h.{i}.self_attention.query_key_value.{kind}")
    if fused is None:
        return None
    # In both of these families the queries of a group, its key and its value follow one another.
    n_groups = config.get("n_query_groups", config["n_head"])
    groups = [group.split(8) for group in fused.chunk(n_groups)]
    return [
        torch.cat([head for group in groups for head in group[span]]) for span in (slice(-2), slice(-2, -1), slice(-1, None))
    ]


def by_groups(parts):
    """Rows as Lit-GPT and litgpt up to 0.4 fuse them: for each key/value head its queries, the key, the value."""
    q, k, v = (part.split(8) for part in parts)
    per_group = len(q) // len(k)
    rows = []
    for g in range(len(k)):
        rows += [*q[g * per_group : (g + 1) * per_group], k[g], v[g]]
    return torch.cat(rows)


def make_lit_gpt(folder, name, generation, **changes):
    """The tiny model of that case in transformers, and a folder that holds its weights as this generation did."""
    from safetensors.torch import load_file

    case = BY_NAME[name]
    reference = make_reference(case, folder.parent / "hf")
    hf = load_file(folder.parent / "hf" / "model.safetensors")
    hf.setdefault("lm_head.weight", hf.get("transformer.word_embeddings.weight"))
    config = {**SIZES, **CONFIGS[name], **changes}
    modules = {k.format(i): v.format(i) for k, v in NAMES[case.family].items() for i in range(config["n_layer"])}
    tensors = {
        f"{modules[module]}.{kind}": hf[f"{module}.{kind}"]
        for module in modules
        for kind in ("weight", "bias")
        if hf.get(f"{module}.{kind}") is not None
    }
    for i in range(config["n_layer"]):
        for kind in ("weight", "bias"):
            if parts := qkv(hf, i, kind, config):
                qkv_name = "attn.qkv" if generation == "litgpt-0.5" else "attn.attn"
                fuse = torch.cat if generation == "litgpt-0.5" else by_groups
                tensors[f"transformer.h.{i}.{qkv_name}.{kind}"] = fuse(parts)
    folder.mkdir()
    torch.save(tensors, folder / "lit_model.pth")
    if generation == "lit-gpt":
        for part in ("norm", "mlp"):
            if f"{part}_class_name" in config:
                config[f"_{part}_class"] = config.pop(f"{part}_class_name")
        (folder / "lit_config.json").write_text(json.dumps({"org": "o", "name": "m", **config}))
    else:
        (folder / "model_config.yaml").write_text(yaml.dump({"name": "m", "hf_config": {"org": "o", "name": "m"}, **config}))
    make_tokenizer(folder, 99)
    return case, reference
