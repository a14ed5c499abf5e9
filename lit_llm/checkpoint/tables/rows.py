"""Names of weights: upstream's modules and ours, as rows that the tables of families are joined from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_llm.errors import CheckpointError
from lit_llm.model.config import Config


@dataclass(frozen=True)
class Fused:
    """One upstream tensor that holds several of ours one below the other (along dim 0), or one of ours transposed."""

    names: tuple[str, ...]
    transposed: bool = False
    """Weights are stored as (in, out) (GPT-2's Conv1D)."""
    blocks: int | str = 1
    """Number of blocks of the rows, or the field of `Config` that has it; each block has an equal share of every part. With
    `n_query_groups`, a block has a key/value head and its query heads (GPT-NeoX, Falcon)."""

    def n_blocks(self, config: Config) -> int:
        return self.blocks if isinstance(self.blocks, int) else getattr(config, self.blocks)

    def rows(self, config: Config) -> tuple[int, ...]:
        """Return the rows of each of ours."""
        n_rows = {"attn": _attention_rows(config), "delta": _delta_rows(config)}
        sizes = {"shared": config.shared_expert_size, "experts": config.expert_size}
        return tuple(_n_rows(name, n_rows, sizes, config) for name in self.names)

    def parts(self, config: Config, indices: Sequence[str]) -> list[str]:
        """Return our names in the layer of these indices."""
        return [name.format(*indices) for name in self.names]

    def split(self, config: Config, tensor: Tensor) -> Sequence[Tensor]:
        """Raise CheckpointError if the tensor does not have the rows of all parts."""
        tensor = tensor.t().contiguous() if self.transposed else tensor
        rows = self.rows(config)
        if len(tensor) != sum(rows):
            raise CheckpointError(
                f"has {len(tensor)} rows, its config says {sum(rows)}. Weights and config do not belong together"
            )
        n = self.n_blocks(config)
        parts = tensor.unflatten(0, (n, -1)).split([n_rows // n for n_rows in rows], dim=1)
        return [part.flatten(0, 1) for part in parts]

    def join(self, config: Config, parts: Sequence[Tensor]) -> Tensor:
        """Inverse of `split`."""
        n = self.n_blocks(config)
        tensor = torch.cat([part.unflatten(0, (n, -1)) for part in parts], dim=1).flatten(0, 1)
        return tensor.t().contiguous() if self.transposed else tensor


def _attention_rows(config: Config) -> dict[str, int]:
    q, kv = config.n_head * config.head_size, config.n_query_groups * config.head_size
    return {"q": q, "k": kv, "v": kv, "o_gate": q}


def _delta_rows(config: Config) -> dict[str, int]:
    keys, values = config.delta_sizes
    return {"q": keys, "k": keys, "v": values, "o_gate": values, "rate": config.delta_heads, "decay": config.delta_heads}


def _n_rows(name: str, n_rows: Mapping[str, Mapping[str, int]], sizes: Mapping[str, int], config: Config) -> int:
    *path, part = name.split(".")
    if part in ("gate", "up"):
        return next((size for place, size in sizes.items() if place in path), config.intermediate_size)
    return n_rows.get(path[-1], {}).get(part, config.n_embd)


@dataclass(frozen=True)
class Stacked:
    """One upstream tensor with a slice along dim 0 for each expert, which holds the parts of it that `names` are."""

    names: tuple[str, ...]
    transposed: bool = False
    """Weights are stored as (in, out)."""
    interleaved: bool = False
    """Rows of the parts alternate."""

    def parts(self, config: Config, indices: Sequence[str]) -> list[str]:
        """Return our names in the layer of these indices, expert by expert."""
        return [name.format(*indices[:1], expert) for expert in range(config.n_expert) for name in self.names]

    def split(self, config: Config, tensor: Tensor) -> Sequence[Tensor]:
        """Return views of the tensor. Raise CheckpointError if it does not have a slice for each expert."""
        n = len(self.names)
        tensor = tensor.transpose(1, 2) if self.transposed and tensor.dim() == 3 else tensor
        if tensor.dim() < 2 or len(tensor) != config.n_expert or tensor.size(1) % n:
            raise CheckpointError(
                f"has shape {list(tensor.shape)}, its config says {config.n_expert} experts. Weights and config do not belong "
                "together"
            )
        if self.interleaved:
            return [expert[i::n] for expert in tensor for i in range(n)]
        return [part for expert in tensor for part in expert.chunk(n)]

    def join(self, config: Config, parts: Sequence[Tensor]) -> Tensor:
        """Inverse of `split`."""
        n = len(self.names)
        experts = [parts[i : i + n] for i in range(0, len(parts), n)]
        if self.interleaved:
            tensor = torch.stack([torch.stack(list(expert), 1).flatten(0, 1) for expert in experts])
        else:
            tensor = torch.stack([torch.cat(list(expert)) for expert in experts])
        return tensor.transpose(1, 2).contiguous() if self.transposed and tensor.dim() == 3 else tensor


@dataclass(frozen=True)
class Row:
    """One of our vectors (n,), which upstream stores as (1, n)."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def parts(self, config: Config, indices: Sequence[str]) -> list[str]:
        """Return our name in the layer of these indices."""
        return [self.name.format(*indices)]

    def split(self, config: Config, tensor: Tensor) -> Sequence[Tensor]:
        return [tensor.flatten()]

    def join(self, config: Config, parts: Sequence[Tensor]) -> Tensor:
        return parts[0][None]


def fused(*parts: str, transposed: bool = False, blocks: int | str = 1) -> Fused:
    return Fused(tuple(f"h.{{}}.{part}" for part in parts), transposed, blocks)


def stacked(*parts: str, transposed: bool = False, interleaved: bool = False) -> Stacked:
    return Stacked(tuple(f"h.{{}}.mlp.experts.{{}}.{part}" for part in parts), transposed, interleaved)


QKV = ("attn.q", "attn.k", "attn.v")

Entry = str | Fused | Stacked | Row
# Upstream module -> our module: `.weight` and `.bias` are appended to both; or tensor -> tensor. Each `{}` is an index.
Table = dict[str, Entry]


def in_layers(prefix: str, rows: Table) -> Table:
    """Return a table from rows of names inside a layer, which upstream calls `prefix`."""
    return {f"{prefix}.{{}}.{theirs}": f"h.{{}}.{ours}" if isinstance(ours, str) else ours for theirs, ours in rows.items()}


# Rows of layers, as most families name them.
ATTENTION: Table = {f"self_attn.{part}_proj": f"attn.{part}" for part in "qkvo"}
GATED_MLP: Table = {f"mlp.{part}_proj": f"mlp.{part}" for part in ("gate", "up", "down")}
PLAIN_MLP: Table = {f"mlp.{part}_proj": f"mlp.{part}" for part in ("up", "down")}
PRE_NORMS: Table = {"input_layernorm": "norm_1", "post_attention_layernorm": "norm_2"}
POST_NORMS: Table = {"post_attention_layernorm": "post_attn_norm", "post_feedforward_layernorm": "post_mlp_norm"}
QK_NORMS: Table = {"self_attn.q_norm": "attn.q_norm", "self_attn.k_norm": "attn.k_norm"}
LLAMA = PRE_NORMS | ATTENTION | GATED_MLP


def model_table(rows: Table, norm: str | None = "norm") -> Table:
    """Return the table of a family that calls its parts `model.*`, given the rows of a layer."""
    ends: Table = {"model.embed_tokens": "wte", "lm_head": "lm_head"}
    return ends | ({} if norm is None else {f"model.{norm}": "norm"}) | in_layers("model.layers", rows)


def names_of(entry: Entry) -> tuple[str, ...]:
    """Return our modules, or tensors, in one entry of a table."""
    return (entry,) if isinstance(entry, str) else entry.names
