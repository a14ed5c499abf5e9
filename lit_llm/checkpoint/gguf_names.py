"""Names of tensors in GGUF files: upstream's tables in terms of the `gguf` package, which has a name for each of upstream's."""

from dataclasses import replace

import torch
from torch import Tensor

from lit_llm.checkpoint.tables import TABLES
from lit_llm.checkpoint.tables.rows import Fused, Row, Stacked, Table
from lit_llm.checkpoint.tensor_names import Names
from lit_llm.errors import CheckpointError
from lit_llm.model.config import Config

# Architectures whose q and k llama.cpp rotates in neighbouring pairs, so that their rows are in another order than upstream's.
PERMUTED = frozenset(("llama", "olmo", "smollm3"))

# Tensors of RoPE, which belong to the config. llama.cpp reads them from the first layer.
ROPE_TENSORS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}


def gguf_names(config: Config, arch: str) -> Names:
    """Return the names of a model's tensors in a GGUF file of this architecture.

    Raises:
        CheckpointError: if the architecture has no such tensor.
    """
    import gguf

    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    known = gguf.get_tensor_name_map(numbers[arch], 1)
    table: Table = {}
    for upstream, entry in TABLES[config.model_type](config).items():
        name = known.get_name(upstream.replace("experts.{}.", "experts.").replace("{}", "0"))
        if name is None and entry == "lm_head" and config.tie_embeddings:
            continue
        if name is None or isinstance(entry, Stacked | Row):
            raise CheckpointError(
                f"the architecture {arch} of GGUF has no place for the weights {upstream}. Use the format of Hugging Face"
            )
        name = name.replace("blk.0.", "blk.{}.")
        if isinstance(entry, Fused):
            table[name] = replace(entry, blocks=1, transposed=False)
        elif "experts.{}." in entry:
            table[f"{name}.weight"] = Stacked((f"{entry}.weight",))
        else:
            table[name] = entry
    return Names(config, table)


def to_pairs(rows: Tensor, n_head: int) -> Tensor:
    """Reorder the rows of q or k for a RoPE that rotates dimensions 2i and 2i + 1 of a head, not i and i + head_size / 2."""
    return rows.unflatten(0, (n_head, 2, -1)).transpose(1, 2).flatten(0, 2)


def from_pairs(rows: Tensor, n_head: int) -> Tensor:
    """Inverse of `to_pairs`."""
    return rows.unflatten(0, (n_head, -1, 2)).transpose(1, 2).flatten(0, 2)


def rotated_heads(name: str, config: Config, arch: str) -> int | None:
    """Return the number of heads of a tensor whose rows have another order in GGUF than upstream, else None."""
    if arch not in PERMUTED:
        return None
    return {"attn_q": config.n_head, "attn_k": config.n_query_groups}.get(name.split(".")[-2])


def adds_one(name: str, config: Config) -> bool:
    """Return whether GGUF has the weight of a norm itself, where upstream has it minus one."""
    return config.norm == "rms_plus_one" and name.endswith("norm.weight")


def to_gguf_layout(tensor: Tensor, name: str, config: Config, arch: str) -> Tensor:
    """Return an upstream tensor as the GGUF file has it under `name`."""
    if (n_head := rotated_heads(name, config, arch)) is not None:
        return to_pairs(tensor, n_head)
    return tensor.float() + 1 if adds_one(name, config) else tensor


def from_gguf_layout(tensor: Tensor, name: str, config: Config, arch: str) -> Tensor:
    """Inverse of `to_gguf_layout`, up to the rounding of norms. A tensor of a wrong shape, which the caller refuses, stays."""
    if (n_head := rotated_heads(name, config, arch)) is not None:
        return tensor if tensor.size(0) % (2 * n_head) else from_pairs(tensor, n_head)
    return tensor.to(torch.float32) - 1 if adds_one(name, config) else tensor
