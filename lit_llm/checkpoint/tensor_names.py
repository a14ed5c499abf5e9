"""Names of weights: one table per family, read in both directions between Hugging Face's layout and ours."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_llm.errors import CheckpointError
from lit_llm.model.config import Config


@dataclass(frozen=True)
class Fused:
    """One upstream tensor that holds several of ours one below the other (along dim 0), or one of ours transposed."""

    names: tuple[str, ...]
    grouped: bool = False
    """Rows are interleaved: for each key/value head its query heads, its key, its value (GPT-NeoX, Falcon)."""
    transposed: bool = False
    """Weights are stored as (in, out) (GPT-2's Conv1D)."""

    def rows(self, config: Config) -> tuple[int, ...]:
        """Return the rows of each of ours."""
        q, kv = config.n_head * config.head_size, config.n_query_groups * config.head_size
        n_rows = {"q": q, "k": kv, "v": kv, "gate": config.intermediate_size, "up": config.intermediate_size}
        return tuple(n_rows.get(name.rpartition(".")[2], config.n_embd) for name in self.names)

    def split(self, config: Config, tensor: Tensor) -> Sequence[Tensor]:
        """Raise CheckpointError if the tensor does not have the rows of all parts."""
        tensor = tensor.t().contiguous() if self.transposed else tensor
        rows = self.rows(config)
        if len(tensor) != sum(rows):
            raise CheckpointError(
                f"has {len(tensor)} rows, its config says {sum(rows)}. Weights and config do not belong together"
            )
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


def _fused(*parts: str, grouped: bool = False, transposed: bool = False) -> Fused:
    return Fused(tuple(f"h.{{}}.{part}" for part in parts), grouped, transposed)


_QKV = ("attn.q", "attn.k", "attn.v")

# Upstream module -> our module. Each `{}` is an index; `.weight` and `.bias` are appended.
Table = dict[str, str | Fused]


def _layers(prefix: str, rows: Table) -> Table:
    """Return a table from rows of names inside a layer, which upstream calls `prefix`."""
    return {f"{prefix}.{{}}.{theirs}": f"h.{{}}.{ours}" if isinstance(ours, str) else ours for theirs, ours in rows.items()}


# Rows of layers, as most families name them.
_ATTENTION: Table = {f"self_attn.{part}_proj": f"attn.{part}" for part in "qkvo"}
_GATED_MLP: Table = {f"mlp.{part}_proj": f"mlp.{part}" for part in ("gate", "up", "down")}
_PRE_NORMS: Table = {"input_layernorm": "norm_1", "post_attention_layernorm": "norm_2"}
_POST_NORMS: Table = {"post_attention_layernorm": "post_attn_norm", "post_feedforward_layernorm": "post_mlp_norm"}
_QK_NORMS: Table = {"self_attn.q_norm": "attn.q_norm", "self_attn.k_norm": "attn.k_norm"}
_LLAMA = _PRE_NORMS | _ATTENTION | _GATED_MLP
_GEMMA2 = _ATTENTION | _GATED_MLP | _POST_NORMS | {"input_layernorm": "norm_1", "pre_feedforward_layernorm": "norm_2"}


def _model(rows: Table, norm: str | None = "norm") -> Table:
    """Return the table of a family that calls its parts `model.*`, given the rows of a layer."""
    ends: Table = {"model.embed_tokens": "wte", "lm_head": "lm_head"}
    return ends | ({} if norm is None else {f"model.{norm}": "norm"}) | _layers("model.layers", rows)


def _gpt2(rows: Table) -> Table:
    ends: Table = {
        "transformer.wte": "wte", "transformer.wpe": "wpe", "transformer.ln_f": "norm", "lm_head": "lm_head",
    }  # fmt: skip
    return ends | _layers("transformer.h", {"ln_1": "norm_1", "ln_2": "norm_2", **rows})


_MIXTRAL: Table = {
    "block_sparse_moe.gate": "mlp.router",
    "block_sparse_moe.experts.{}.w1": "mlp.experts.{}.gate",
    "block_sparse_moe.experts.{}.w3": "mlp.experts.{}.up",
    "block_sparse_moe.experts.{}.w2": "mlp.experts.{}.down",
}
_PHI3: Table = {
    "self_attn.qkv_proj": _fused(*_QKV),
    "self_attn.o_proj": "attn.o",
    "mlp.gate_up_proj": _fused("mlp.gate", "mlp.up"),
    "mlp.down_proj": "mlp.down",
}
_NEOX_MLP: Table = {"mlp.dense_h_to_4h": "mlp.up", "mlp.dense_4h_to_h": "mlp.down"}
_NEOX_ATTENTION: Table = {
    "attention.query_key_value": _fused(*_QKV, grouped=True),
    "attention.dense": "attn.o",
}
_GPT_NEOX: Table = {
    "gpt_neox.embed_in": "wte", "gpt_neox.final_layer_norm": "norm", "embed_out": "lm_head",
} | _layers("gpt_neox.layers", _PRE_NORMS | _NEOX_ATTENTION | _NEOX_MLP)  # fmt: skip
_GPT2 = _gpt2({
    "attn.c_attn": _fused(*_QKV, transposed=True),
    "attn.c_proj": _fused("attn.o", transposed=True),
    "mlp.c_fc": _fused("mlp.up", transposed=True),
    "mlp.c_proj": _fused("mlp.down", transposed=True),
})  # fmt: skip
_GPT_BIGCODE = _gpt2({
    "attn.c_attn": _fused(*_QKV, grouped=True), "attn.c_proj": "attn.o", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down",
})  # fmt: skip


def _qwen3_moe(config: Config) -> Table:
    experts: Table = {f"mlp.experts.{{}}.{part}_proj": f"mlp.experts.{{}}.{part}" for part in ("gate", "up", "down")}
    kinds = {config.has_experts(layer) for layer in range(config.n_layer)}
    mlps = ({"mlp.gate": "mlp.router", **experts} if True in kinds else {}) | (_GATED_MLP if False in kinds else {})
    return _model(_PRE_NORMS | _ATTENTION | _QK_NORMS | mlps)


def _stablelm(config: Config) -> Table:
    rows = dict(_LLAMA)
    if config.parallel_residual:
        del rows["post_attention_layernorm"]
    if config.qk_norm:
        rows |= {f"self_attn.{x}_layernorm.norms.{{}}": f"attn.{x}_norm.{{}}" for x in "qk"}
    return _model(rows)


def _phi(config: Config) -> Table:
    rows: Table = {f"self_attn.{part}_proj": f"attn.{part}" for part in "qkv"}
    rows |= {"self_attn.dense": "attn.o", "input_layernorm": "norm_1", "mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down"}
    if config.qk_norm:
        rows |= {f"self_attn.{x}_layernorm": f"attn.{x}_norm" for x in "qk"}
    return _model(rows, norm="final_layernorm")


def _falcon(config: Config) -> Table:
    if not config.parallel_residual:
        norms = _PRE_NORMS
    elif config.shared_attention_norm:
        norms: Table = {"input_layernorm": "norm_1"}
    else:
        norms = {"ln_attn": "norm_1", "ln_mlp": "norm_2"}
    attention = {f"self_{theirs}": ours for theirs, ours in _NEOX_ATTENTION.items()}
    ends: Table = {"transformer.word_embeddings": "wte", "transformer.ln_f": "norm", "lm_head": "lm_head"}
    return ends | _layers("transformer.h", norms | attention | _NEOX_MLP)


TABLES: dict[str, Callable[[Config], Table]] = {
    "llama": lambda config: _model(_LLAMA),
    "mistral": lambda config: _model(_LLAMA),
    "mixtral": lambda config: _model(_PRE_NORMS | _ATTENTION | _MIXTRAL),
    "qwen2": lambda config: _model(_LLAMA),
    "qwen3": lambda config: _model(_LLAMA | _QK_NORMS),
    "qwen3_moe": _qwen3_moe,
    "gemma": lambda config: _model(_LLAMA),
    "gemma2": lambda config: _model(_GEMMA2),
    "gemma3_text": lambda config: _model(_GEMMA2 | _QK_NORMS),
    "phi": _phi,
    "phi3": lambda config: _model(_PRE_NORMS | _PHI3),
    "olmo": lambda config: _model(_ATTENTION | _GATED_MLP, norm=None),
    "olmo2": lambda config: _model(_ATTENTION | _QK_NORMS | _GATED_MLP | _POST_NORMS),
    "smollm3": lambda config: _model(_LLAMA),
    "stablelm": _stablelm,
    "gpt_neox": lambda config: _GPT_NEOX,
    "falcon": _falcon,
    "RefinedWebModel": _falcon,
    "RefinedWeb": _falcon,
    "gpt2": lambda config: _GPT2,
    "gpt_bigcode": lambda config: _GPT_BIGCODE,
    "starcoder2": lambda config: _model(_PRE_NORMS | _ATTENTION | {"mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}),
}


def _lit_gpt(config: Config) -> Table:
    """Return the names of Lit-GPT and litgpt, for all families."""
    mlp = {"proj": "down", **({"fc": "up"} if config.mlp == "plain" else {"fc_1": "gate", "fc_2": "up"})}
    rows: Table = {
        "norm_1": "norm_1",
        "attn.attn": _fused(*_QKV, grouped=True),
        "attn.qkv": _fused(*_QKV),  # since litgpt 0.5
        "attn.norm_q": "attn.q_norm",
        "attn.norm_k": "attn.k_norm",
        "attn.proj": "attn.o",
        "post_attention_norm": "post_attn_norm",
        "norm_2": "norm_2",
        "post_mlp_norm": "post_mlp_norm",
        "mlp.gate": "mlp.router",
        **{f"mlp.{theirs}": f"mlp.{ours}" for theirs, ours in mlp.items()},
        **{f"mlp.experts.{{}}.{theirs}": f"mlp.experts.{{}}.{ours}" for theirs, ours in mlp.items()},
    }
    return {"transformer.wte": "wte", "transformer.ln_f": "norm", "lm_head": "lm_head"} | _layers("transformer.h", rows)


# Tensors of old checkpoints that the model computes itself.
_DROPPED = re.compile(r"(rotary_emb\.inv_freq|\b(attention|self_attn|attn)\.(masked_)?bias)$")
# The first GPT-2 checkpoints hold only the decoder: its tensors lack this prefix.
_BASE_PREFIX = {"gpt2": "transformer."}


def to_lit(config: Config, tensors: Iterable[tuple[str, Callable[[], Tensor]]]) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield our name and a function that reads the tensor, for each upstream tensor.

    Only fused tensors are read here, to be split.

    Raises:
        CheckpointError: for a name that the family's table does not have, or a fused tensor of the wrong size.
    """
    kept = ((name, read) for name, read in tensors if not _DROPPED.search(name))
    return _translate(TABLES[config.model_type](config), _BASE_PREFIX.get(config.model_type, ""), config, kept)


def from_lit_gpt(
    config: Config, tensors: Iterable[tuple[str, Callable[[], Tensor]]]
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Translate as `to_lit` does, from the names of Lit-GPT and litgpt."""
    return _translate(_lit_gpt(config), "", config, tensors)


def _translate(
    table: Table, prefix: str, config: Config, tensors: Iterable[tuple[str, Callable[[], Tensor]]]
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    for name, read in tensors:
        module, kind, indices = _pattern(name)
        entry = table.get(module) or table.get(prefix + module)
        if entry is None:
            raise CheckpointError(f"unexpected tensor {name}: it has no place in a {config.model_type} model")
        if entry == "lm_head" and kind == "weight" and config.tie_embeddings:
            continue
        if isinstance(entry, str):
            yield f"{entry.format(*indices)}.{kind}", read
        else:
            try:
                parts = entry.split(config, read())
            except CheckpointError as error:
                raise CheckpointError(f"tensor {name} {error}") from error
            for part_name, part in zip(entry.names, parts, strict=True):
                yield f"{part_name.format(*indices)}.{kind}", lambda part=part: part


def to_hf(config: Config, lit: dict[str, Callable[[], Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield upstream names and tensors from ours, one at a time; the inverse of `to_lit`. A tied head is omitted.

    Readers are removed from `lit` once used, so that a file is closed after its last tensor.
    """
    entries = {}  # by the first of our modules
    later_parts = set()
    for module, entry in TABLES[config.model_type](config).items():
        first, *others = names_of(entry)
        entries[first] = module, entry
        later_parts.update(others)
    for name in list(lit):
        ours, kind, indices = _pattern(name)
        if ours in later_parts or (name == "lm_head.weight" and config.tie_embeddings):
            continue
        module, entry = entries[ours]
        parts = [lit.pop(f"{part.format(*indices)}.{kind}")() for part in names_of(entry)]
        yield f"{module.format(*indices)}.{kind}", parts[0] if isinstance(entry, str) else entry.join(config, parts)


def names_of(entry: str | Fused) -> tuple[str, ...]:
    """Return our modules in one entry of a table."""
    return (entry,) if isinstance(entry, str) else entry.names


def parts_of_family(config: Config) -> set[str]:
    """Return our modules, `{}` for each index, in the table of the family."""
    return {part for entry in TABLES[config.model_type](config).values() for part in names_of(entry)}


def parts_of_model(names: Iterable[str]) -> set[str]:
    """Return the modules, `{}` for each index, of tensors with these names of ours."""
    return {_pattern(name)[0] for name in names}


def _pattern(name: str) -> tuple[str, str, list[str]]:
    """Split a tensor's name into its module with `{}` for each index, `weight` or `bias`, and the indices."""
    module, _, kind = name.rpartition(".")
    index = r"(?<=\.)\d+(?=\.|$)"
    return re.sub(index, "{}", module), kind, re.findall(index, module)
