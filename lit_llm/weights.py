"""Names of weights: one table per family, read in both directions between Hugging Face's layout and ours."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_llm.config import Config


@dataclass(frozen=True)
class Fused:
    """One upstream tensor that holds several of ours, taken apart and put together along dim 0 (rows)."""

    names: tuple[str, ...]
    split: Callable[[Config, Tensor], Sequence[Tensor]]
    join: Callable[[Config, Sequence[Tensor]], Tensor]


def split_grouped_qkv(config: Config, qkv: Tensor) -> Sequence[Tensor]:
    """Rows lie per key/value head: its query heads, its key, its value (GPT-NeoX, Falcon)."""
    ng, hs = config.n_query_groups, config.head_size
    grouped = qkv.unflatten(0, (ng, config.n_head // ng + 2, hs))
    q, k, v = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
    return q.flatten(0, 2), k.flatten(0, 1), v.flatten(0, 1)


def join_grouped_qkv(config: Config, qkv: Sequence[Tensor]) -> Tensor:
    ng, hs = config.n_query_groups, config.head_size
    return torch.cat([x.unflatten(0, (ng, -1, hs)) for x in qkv], dim=1).flatten(0, 2)


def _grouped_qkv(prefix: str) -> Fused:
    return Fused((f"{prefix}q", f"{prefix}k", f"{prefix}v"), split_grouped_qkv, join_grouped_qkv)


# Upstream module -> our module. `{}` stands for the index of the layer; `.weight` and `.bias` follow by themselves.
Table = dict[str, str | Fused]

LLAMA: Table = {
    "model.embed_tokens": "wte",
    "model.layers.{}.input_layernorm": "h.{}.norm_1",
    "model.layers.{}.self_attn.q_proj": "h.{}.attn.q",
    "model.layers.{}.self_attn.k_proj": "h.{}.attn.k",
    "model.layers.{}.self_attn.v_proj": "h.{}.attn.v",
    "model.layers.{}.self_attn.o_proj": "h.{}.attn.o",
    "model.layers.{}.post_attention_layernorm": "h.{}.norm_2",
    "model.layers.{}.mlp.gate_proj": "h.{}.mlp.gate",
    "model.layers.{}.mlp.up_proj": "h.{}.mlp.up",
    "model.layers.{}.mlp.down_proj": "h.{}.mlp.down",
    "model.norm": "norm",
    "lm_head": "lm_head",
}

GPT_NEOX: Table = {
    "gpt_neox.embed_in": "wte",
    "gpt_neox.layers.{}.input_layernorm": "h.{}.norm_1",
    "gpt_neox.layers.{}.attention.query_key_value": _grouped_qkv("h.{}.attn."),
    "gpt_neox.layers.{}.attention.dense": "h.{}.attn.o",
    "gpt_neox.layers.{}.post_attention_layernorm": "h.{}.norm_2",
    "gpt_neox.layers.{}.mlp.dense_h_to_4h": "h.{}.mlp.up",
    "gpt_neox.layers.{}.mlp.dense_4h_to_h": "h.{}.mlp.down",
    "gpt_neox.final_layer_norm": "norm",
    "embed_out": "lm_head",
}


def _falcon(config: Config) -> Table:
    if not config.parallel_residual:
        norms = {"input_layernorm": "norm_1", "post_attention_layernorm": "norm_2"}
    elif config.shared_attention_norm:
        norms = {"input_layernorm": "norm_1"}
    else:
        norms = {"ln_attn": "norm_1", "ln_mlp": "norm_2"}
    return {
        "transformer.word_embeddings": "wte",
        **{f"transformer.h.{{}}.{theirs}": f"h.{{}}.{ours}" for theirs, ours in norms.items()},
        "transformer.h.{}.self_attention.query_key_value": _grouped_qkv("h.{}.attn."),
        "transformer.h.{}.self_attention.dense": "h.{}.attn.o",
        "transformer.h.{}.mlp.dense_h_to_4h": "h.{}.mlp.up",
        "transformer.h.{}.mlp.dense_4h_to_h": "h.{}.mlp.down",
        "transformer.ln_f": "norm",
        "lm_head": "lm_head",
    }


TABLES: dict[str, Callable[[Config], Table]] = {
    "llama": lambda config: LLAMA,
    "gpt_neox": lambda config: GPT_NEOX,
    "falcon": _falcon,
}

# Tensors that old checkpoints carry and that the model computes itself.
_DROPPED = re.compile(r"(rotary_emb\.inv_freq|attention\.masked_bias|attention\.bias|self_attn\.bias)$")


def to_lit(config: Config, tensors: Iterable[tuple[str, Callable[[], Tensor]]]) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Our name and a function that reads the tensor, for each upstream tensor. Nothing is read here, except fused tensors
    when their first part is.

    Raises:
        ValueError: for a name that the family's table does not have.
    """
    table = TABLES[config.model_type](config)
    for name, read in tensors:
        if _DROPPED.search(name) or (config.tie_embeddings and name == _head_name(table)):
            continue
        module, _, kind = name.rpartition(".")
        layer = re.search(r"\.(\d+)\.", module)
        entry = table.get(re.sub(r"\.\d+\.", ".{}.", module, count=1))
        if entry is None:
            raise ValueError(f"unexpected tensor {name}: it has no place in a {config.model_type} model")
        index = layer.group(1) if layer else ""
        if isinstance(entry, str):
            yield f"{entry.format(index)}.{kind}", read
        else:
            parts = entry.split(config, read())
            for part_name, part in zip(entry.names, parts, strict=True):
                yield f"{part_name.format(index)}.{kind}", lambda part=part: part


def to_hf(config: Config, lit: dict[str, Callable[[], Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Upstream names and tensors from ours, one at a time; the inverse of `to_lit`. A tied head is left out."""
    for module, entry in TABLES[config.model_type](config).items():
        names = (entry,) if isinstance(entry, str) else entry.names
        for index in range(config.n_layer) if "{}" in module else ("",):
            for kind in ("weight", "bias"):
                parts = [f"{name.format(index)}.{kind}" for name in names]
                if parts[0] not in lit or (config.tie_embeddings and names == ("lm_head",)):
                    continue
                tensors = [lit[part]() for part in parts]
                yield (
                    f"{module.format(index)}.{kind}",
                    tensors[0] if isinstance(entry, str) else entry.join(config, tensors),
                )


def _head_name(table: Table) -> str:
    return next(f"{module}.weight" for module, entry in table.items() if entry == "lm_head")
