"""Names of weights: upstream's modules and ours, as rows that the tables of families are joined from."""

from collections.abc import Sequence
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


def fused(*parts: str, grouped: bool = False, transposed: bool = False) -> Fused:
    return Fused(tuple(f"h.{{}}.{part}" for part in parts), grouped, transposed)


QKV = ("attn.q", "attn.k", "attn.v")

# Upstream module -> our module. Each `{}` is an index; `.weight` and `.bias` are appended.
Table = dict[str, str | Fused]


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


def names_of(entry: str | Fused) -> tuple[str, ...]:
    """Return our modules in one entry of a table."""
    return (entry,) if isinstance(entry, str) else entry.names
