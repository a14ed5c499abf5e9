"""Names of weights: one table per family, read in both directions between Hugging Face's layout and ours."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_llm.model.config import Config


@dataclass(frozen=True)
class Fused:
    """One upstream tensor that holds several of ours one below the other (along dim 0), or one of ours transposed."""

    names: tuple[str, ...]
    rows: Callable[[Config], tuple[int, ...]]
    """Rows of each of ours."""
    grouped: bool = False
    """The rows of q, k and v lie per key/value head: its query heads, its key, its value (GPT-NeoX, Falcon)."""
    transposed: bool = False
    """Weights are stored as (in, out) (GPT-2's Conv1D)."""

    def split(self, config: Config, tensor: Tensor) -> Sequence[Tensor]:
        """Raises ValueError if the tensor has not the rows of all parts."""
        tensor = tensor.t().contiguous() if self.transposed else tensor
        rows = self.rows(config)
        if len(tensor) != sum(rows):
            raise ValueError(f"has {len(tensor)} rows, its config says {sum(rows)}. Weights and config do not belong together")
        if not self.grouped:
            return tensor.split(rows)
        ng, hs = config.n_query_groups, config.head_size
        grouped = tensor.unflatten(0, (ng, config.n_head // ng + 2, hs))
        return grouped[:, :-2].flatten(0, 2), grouped[:, -2].flatten(0, 1), grouped[:, -1].flatten(0, 1)

    def join(self, config: Config, parts: Sequence[Tensor]) -> Tensor:
        """Inverse of `split`."""
        if self.grouped:
            ng, hs = config.n_query_groups, config.head_size
            return torch.cat([part.unflatten(0, (ng, -1, hs)) for part in parts], dim=1).flatten(0, 2)
        tensor = torch.cat(list(parts))
        return tensor.t().contiguous() if self.transposed else tensor


def _qkv(grouped: bool = False, transposed: bool = False) -> Fused:
    def rows(config: Config) -> tuple[int, int, int]:
        kv = config.n_query_groups * config.head_size
        return config.n_head * config.head_size, kv, kv

    return Fused(("h.{}.attn.q", "h.{}.attn.k", "h.{}.attn.v"), rows, grouped, transposed)


def _transposed(name: str, rows: Callable[[Config], int]) -> Fused:
    return Fused((name,), lambda config: (rows(config),), transposed=True)


# Upstream module -> our module. Each `{}` stands for an index; `.weight` and `.bias` follow by themselves.
Table = dict[str, str | Fused]

_ATTENTION: Table = {
    "model.layers.{}.self_attn.q_proj": "h.{}.attn.q",
    "model.layers.{}.self_attn.k_proj": "h.{}.attn.k",
    "model.layers.{}.self_attn.v_proj": "h.{}.attn.v",
    "model.layers.{}.self_attn.o_proj": "h.{}.attn.o",
}
_GATED_MLP: Table = {
    "model.layers.{}.mlp.gate_proj": "h.{}.mlp.gate",
    "model.layers.{}.mlp.up_proj": "h.{}.mlp.up",
    "model.layers.{}.mlp.down_proj": "h.{}.mlp.down",
}
_PRE_NORMS: Table = {
    "model.layers.{}.input_layernorm": "h.{}.norm_1",
    "model.layers.{}.post_attention_layernorm": "h.{}.norm_2",
}
_POST_NORMS: Table = {
    "model.layers.{}.post_attention_layernorm": "h.{}.post_attn_norm",
    "model.layers.{}.post_feedforward_layernorm": "h.{}.post_mlp_norm",
}
_QK_NORMS: Table = {
    "model.layers.{}.self_attn.q_norm": "h.{}.attn.q_norm",
    "model.layers.{}.self_attn.k_norm": "h.{}.attn.k_norm",
}
_ENDS: Table = {"model.embed_tokens": "wte", "lm_head": "lm_head"}
_FINAL_NORM: Table = {"model.norm": "norm"}

LLAMA = _ENDS | _FINAL_NORM | _PRE_NORMS | _ATTENTION | _GATED_MLP
STARCODER2 = (
    _ENDS
    | _FINAL_NORM
    | _PRE_NORMS
    | _ATTENTION
    | {"model.layers.{}.mlp.c_fc": "h.{}.mlp.up", "model.layers.{}.mlp.c_proj": "h.{}.mlp.down"}
)
OLMO = _ENDS | _ATTENTION | _GATED_MLP
OLMO2 = _ENDS | _FINAL_NORM | _ATTENTION | _QK_NORMS | _GATED_MLP | _POST_NORMS
GEMMA2 = (
    _ENDS
    | _FINAL_NORM
    | _ATTENTION
    | _GATED_MLP
    | _POST_NORMS
    | {
        "model.layers.{}.input_layernorm": "h.{}.norm_1",
        "model.layers.{}.pre_feedforward_layernorm": "h.{}.norm_2",
    }
)
MIXTRAL = (
    _ENDS
    | _FINAL_NORM
    | _PRE_NORMS
    | _ATTENTION
    | {
        "model.layers.{}.block_sparse_moe.gate": "h.{}.mlp.router",
        "model.layers.{}.block_sparse_moe.experts.{}.w1": "h.{}.mlp.experts.{}.gate",
        "model.layers.{}.block_sparse_moe.experts.{}.w3": "h.{}.mlp.experts.{}.up",
        "model.layers.{}.block_sparse_moe.experts.{}.w2": "h.{}.mlp.experts.{}.down",
    }
)
PHI3 = (
    _ENDS
    | _FINAL_NORM
    | _PRE_NORMS
    | {
        "model.layers.{}.self_attn.qkv_proj": _qkv(),
        "model.layers.{}.self_attn.o_proj": "h.{}.attn.o",
        "model.layers.{}.mlp.gate_up_proj": Fused(
            ("h.{}.mlp.gate", "h.{}.mlp.up"), lambda config: (config.intermediate_size, config.intermediate_size)
        ),
        "model.layers.{}.mlp.down_proj": "h.{}.mlp.down",
    }
)
GPT_NEOX: Table = {
    "gpt_neox.embed_in": "wte",
    "gpt_neox.layers.{}.input_layernorm": "h.{}.norm_1",
    "gpt_neox.layers.{}.attention.query_key_value": _qkv(grouped=True),
    "gpt_neox.layers.{}.attention.dense": "h.{}.attn.o",
    "gpt_neox.layers.{}.post_attention_layernorm": "h.{}.norm_2",
    "gpt_neox.layers.{}.mlp.dense_h_to_4h": "h.{}.mlp.up",
    "gpt_neox.layers.{}.mlp.dense_4h_to_h": "h.{}.mlp.down",
    "gpt_neox.final_layer_norm": "norm",
    "embed_out": "lm_head",
}
_GPT2_ENDS: Table = {
    "transformer.wte": "wte",
    "transformer.wpe": "wpe",
    "transformer.h.{}.ln_1": "h.{}.norm_1",
    "transformer.h.{}.ln_2": "h.{}.norm_2",
    "transformer.ln_f": "norm",
    "lm_head": "lm_head",
}
GPT2 = _GPT2_ENDS | {
    "transformer.h.{}.attn.c_attn": _qkv(transposed=True),
    "transformer.h.{}.attn.c_proj": _transposed("h.{}.attn.o", lambda config: config.n_embd),
    "transformer.h.{}.mlp.c_fc": _transposed("h.{}.mlp.up", lambda config: config.intermediate_size),
    "transformer.h.{}.mlp.c_proj": _transposed("h.{}.mlp.down", lambda config: config.n_embd),
}
GPT_BIGCODE = _GPT2_ENDS | {
    "transformer.h.{}.attn.c_attn": _qkv(grouped=True),
    "transformer.h.{}.attn.c_proj": "h.{}.attn.o",
    "transformer.h.{}.mlp.c_fc": "h.{}.mlp.up",
    "transformer.h.{}.mlp.c_proj": "h.{}.mlp.down",
}


def _qwen3_moe(config: Config) -> Table:
    experts: Table = {
        "model.layers.{}.mlp.gate": "h.{}.mlp.router",
        "model.layers.{}.mlp.experts.{}.gate_proj": "h.{}.mlp.experts.{}.gate",
        "model.layers.{}.mlp.experts.{}.up_proj": "h.{}.mlp.experts.{}.up",
        "model.layers.{}.mlp.experts.{}.down_proj": "h.{}.mlp.experts.{}.down",
    }
    kinds = {config.has_experts(layer) for layer in range(config.n_layer)}
    table = _ENDS | _FINAL_NORM | _PRE_NORMS | _ATTENTION | _QK_NORMS
    return table | (experts if True in kinds else {}) | (_GATED_MLP if False in kinds else {})


def _stablelm(config: Config) -> Table:
    table = dict(LLAMA)
    if config.parallel_residual:
        del table["model.layers.{}.post_attention_layernorm"]
    if config.qk_norm:
        table["model.layers.{}.self_attn.q_layernorm.norms.{}"] = "h.{}.attn.q_norm.{}"
        table["model.layers.{}.self_attn.k_layernorm.norms.{}"] = "h.{}.attn.k_norm.{}"
    return table


def _phi(config: Config) -> Table:
    table = _ENDS | {
        "model.layers.{}.input_layernorm": "h.{}.norm_1",
        **_ATTENTION,
        "model.layers.{}.self_attn.dense": "h.{}.attn.o",
        "model.layers.{}.mlp.fc1": "h.{}.mlp.up",
        "model.layers.{}.mlp.fc2": "h.{}.mlp.down",
        "model.final_layernorm": "norm",
    }
    del table["model.layers.{}.self_attn.o_proj"]
    if config.qk_norm:
        table["model.layers.{}.self_attn.q_layernorm"] = "h.{}.attn.q_norm"
        table["model.layers.{}.self_attn.k_layernorm"] = "h.{}.attn.k_norm"
    return table


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
        "transformer.h.{}.self_attention.query_key_value": _qkv(grouped=True),
        "transformer.h.{}.self_attention.dense": "h.{}.attn.o",
        "transformer.h.{}.mlp.dense_h_to_4h": "h.{}.mlp.up",
        "transformer.h.{}.mlp.dense_4h_to_h": "h.{}.mlp.down",
        "transformer.ln_f": "norm",
        "lm_head": "lm_head",
    }


TABLES: dict[str, Callable[[Config], Table]] = {
    "llama": lambda config: LLAMA,
    "mistral": lambda config: LLAMA,
    "mixtral": lambda config: MIXTRAL,
    "qwen2": lambda config: LLAMA,
    "qwen3": lambda config: LLAMA | _QK_NORMS,
    "qwen3_moe": _qwen3_moe,
    "gemma": lambda config: LLAMA,
    "gemma2": lambda config: GEMMA2,
    "gemma3_text": lambda config: GEMMA2 | _QK_NORMS,
    "phi": _phi,
    "phi3": lambda config: PHI3,
    "olmo": lambda config: OLMO,
    "olmo2": lambda config: OLMO2,
    "smollm3": lambda config: LLAMA,
    "stablelm": _stablelm,
    "gpt_neox": lambda config: GPT_NEOX,
    "falcon": _falcon,
    "RefinedWebModel": _falcon,
    "RefinedWeb": _falcon,
    "gpt2": lambda config: GPT2,
    "gpt_bigcode": lambda config: GPT_BIGCODE,
    "starcoder2": lambda config: STARCODER2,
}


def _lit_gpt(config: Config) -> Table:
    """Names of Lit-GPT and litgpt, for all families."""
    table: Table = {
        "transformer.wte": "wte",
        "transformer.h.{}.norm_1": "h.{}.norm_1",
        "transformer.h.{}.attn.attn": _qkv(grouped=True),
        "transformer.h.{}.attn.qkv": _qkv(),  # since litgpt 0.5
        "transformer.h.{}.attn.norm_q": "h.{}.attn.q_norm",
        "transformer.h.{}.attn.norm_k": "h.{}.attn.k_norm",
        "transformer.h.{}.attn.proj": "h.{}.attn.o",
        "transformer.h.{}.post_attention_norm": "h.{}.post_attn_norm",
        "transformer.h.{}.norm_2": "h.{}.norm_2",
        "transformer.h.{}.post_mlp_norm": "h.{}.post_mlp_norm",
        "transformer.ln_f": "norm",
        "lm_head": "lm_head",
    }
    names = {"proj": "down", **({"fc": "up"} if config.mlp == "plain" else {"fc_1": "gate", "fc_2": "up"})}
    for theirs, ours in names.items():
        table[f"transformer.h.{{}}.mlp.{theirs}"] = f"h.{{}}.mlp.{ours}"
        table[f"transformer.h.{{}}.mlp.experts.{{}}.{theirs}"] = f"h.{{}}.mlp.experts.{{}}.{ours}"
    return table | {"transformer.h.{}.mlp.gate": "h.{}.mlp.router"}


# Tensors that old checkpoints carry and that the model computes itself.
_DROPPED = re.compile(r"(rotary_emb\.inv_freq|\b(attention|self_attn|attn)\.(masked_)?bias)$")
# The first GPT-2 checkpoints hold the decoder alone, so that its tensors lack this prefix.
_BASE_PREFIX = {"gpt2": "transformer."}


def to_lit(config: Config, tensors: Iterable[tuple[str, Callable[[], Tensor]]]) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Our name and a function that reads the tensor, for each upstream tensor. Nothing is read here, except fused tensors
    when their first part is.

    Raises:
        ValueError: for a name that the family's table does not have, or a fused tensor of the wrong size.
    """
    kept = ((name, read) for name, read in tensors if not _DROPPED.search(name))
    return _translate(TABLES[config.model_type](config), _BASE_PREFIX.get(config.model_type, ""), config, kept)


def from_lit_gpt(
    config: Config, tensors: Iterable[tuple[str, Callable[[], Tensor]]]
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """As `to_lit`, from the names of Lit-GPT and litgpt."""
    return _translate(_lit_gpt(config), "", config, tensors)


def _translate(
    table: Table, prefix: str, config: Config, tensors: Iterable[tuple[str, Callable[[], Tensor]]]
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    for name, read in tensors:
        module, kind, indices = _pattern(name)
        entry = table.get(module) or table.get(prefix + module)
        if entry is None:
            raise ValueError(f"unexpected tensor {name}: it has no place in a {config.model_type} model")
        if entry == "lm_head" and kind == "weight" and config.tie_embeddings:
            continue
        if isinstance(entry, str):
            yield f"{entry.format(*indices)}.{kind}", read
        else:
            try:
                parts = entry.split(config, read())
            except ValueError as error:
                raise ValueError(f"tensor {name} {error}") from error
            for part_name, part in zip(entry.names, parts, strict=True):
                yield f"{part_name.format(*indices)}.{kind}", lambda part=part: part


def to_hf(config: Config, lit: dict[str, Callable[[], Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Upstream names and tensors from ours, one at a time; the inverse of `to_lit`. A tied head is left out.

    Takes readers out of `lit` as it goes, so that files are closed when their last tensor was read.
    """
    entries = {}  # by the first of our modules
    later_parts = set()
    for module, entry in TABLES[config.model_type](config).items():
        first, *others = (entry,) if isinstance(entry, str) else entry.names
        entries[first] = module, entry
        later_parts.update(others)
    for name in list(lit):
        ours, kind, indices = _pattern(name)
        if ours in later_parts or (name == "lm_head.weight" and config.tie_embeddings):
            continue
        module, entry = entries[ours]
        names = (ours,) if isinstance(entry, str) else entry.names
        parts = [lit.pop(f"{part.format(*indices)}.{kind}")() for part in names]
        yield f"{module.format(*indices)}.{kind}", parts[0] if isinstance(entry, str) else entry.join(config, parts)


def parts_of_family(config: Config) -> set[str]:
    """Our modules, `{}` for each index, that the table of the family has."""
    return {
        part
        for entry in TABLES[config.model_type](config).values()
        for part in ((entry,) if isinstance(entry, str) else entry.names)
    }


def parts_of_model(names: Iterable[str]) -> set[str]:
    """The modules, `{}` for each index, that tensors of these names of ours belong to."""
    return {_pattern(name)[0] for name in names}


def _pattern(name: str) -> tuple[str, str, list[str]]:
    """Module with `{}` for each index, `weight` or `bias`, and the indices of a tensor's name."""
    module, _, kind = name.rpartition(".")
    index = r"(?<=\.)\d+(?=\.|$)"
    return re.sub(index, "{}", module), kind, re.findall(index, module)
