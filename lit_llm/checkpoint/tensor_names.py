"""Names of weights: one table per family, read in both directions between Hugging Face's layout and ours."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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


# Tensors of old checkpoints that the model computes itself: tables of RoPE and causal masks.
_COMPUTED = re.compile(
    r"(^|\.)((\w+_)?inv_freq|(cos|sin)(_cached?)?|(causal_|attention_|bias_)?mask(_cache)?|masked_bias|rope_cache|position_ids"
    r"|(attention|self_attn|attn)\.bias)$"
)
# The first GPT-2 checkpoints hold only the decoder: its tensors lack this prefix.
_BASE_PREFIX = {"gpt2": "transformer."}

QUANTIZED = (
    "the weights are quantized, which cannot be trained or converted. "
    "Use the original checkpoint and quantize it while loading: `quantize` bnb.nf4"
)
# Tensors of other tools.
_FOREIGN = {
    r"\.(qweight|qzeros|scales|g_idx|absmax|quant_map|SCB|W_q|weight_(scale\w*|packed|zero_point))$": QUANTIZED,
    r"\.quant_state\.": QUANTIZED,
    r"\.(input|output|[kqv]|kv)_scale$": "it is a scale of 8-bit activations or of an 8-bit key/value cache",
    r"^(v_head|value_head)\.": "it belongs to the value head of TRL, which PPO trains",
    r"\.(lora_\w+|modules_to_save|original_module|base_layer)\.": "it belongs to an adapter of PEFT, which is not merged",
    r"^(score|classifier)\.": "it belongs to a classifier",
}

Reader = Callable[[], Tensor]


class Stored(NamedTuple):
    """A tensor in the files of a checkpoint."""

    name: str | None
    """Our name; None if the family has no such tensor."""
    upstream: str
    """The name in the file."""
    read: Reader


@dataclass(frozen=True)
class Names:
    """How the files of a checkpoint name the tensors of a model."""

    config: Config
    table: Table | None
    """None: as we do."""
    prefix: str = ""
    """Prefix of the names in `table` that files may lack."""

    def ours(self, tensors: Iterable[tuple[str, Reader]]) -> Iterator[Stored]:
        """Yield our tensors for those in files. Only fused ones are read here, to be split.

        If embedding and head are tied, the first of them is used: `tied_as_stored` has compared them.

        Raises:
            CheckpointError: for a fused tensor of the wrong size.
        """
        has_embedding = False
        for name, read in tensors:
            if self.table is None:
                yield Stored(name, name, read)
                continue
            module, kind, indices = _pattern(name)
            entry = (self.table.get(module) or self.table.get(self.prefix + module)) if kind in ("weight", "bias") else None
            if entry is None:
                if not _COMPUTED.search(name):
                    yield Stored(None, name, read)
            elif entry in ("wte", "lm_head") and kind == "weight" and self.config.tie_embeddings:
                if not has_embedding:
                    yield Stored("wte.weight", name, read)
                has_embedding = True
            elif isinstance(entry, str):
                yield Stored(f"{entry.format(*indices)}.{kind}", name, read)
            else:
                for part_name, part in zip(entry.names, self._split(entry, name, read), strict=True):
                    yield Stored(f"{part_name.format(*indices)}.{kind}", name, lambda part=part: part)

    def _split(self, entry: Fused, name: str, read: Reader) -> Sequence[Tensor]:
        try:
            return entry.split(self.config, read())
        except CheckpointError as error:
            raise CheckpointError(f"tensor {name} {error}") from error

    def upstream(self, name: str) -> str:
        """Return the name in the files of one of our tensors."""
        if self.table is None:
            return name
        ours, kind, indices = _pattern(name)
        module = next(theirs for theirs, entry in self.table.items() if ours in names_of(entry))
        return f"{module.format(*indices)}.{kind}"

    def ends(self) -> dict[str, str]:
        """Return `wte` or `lm_head` for every name of the weight of embedding or head in files."""
        rows = {} if self.table is None else self.table
        ends = {
            f"{theirs}.weight": ours for theirs, ours in rows.items() if isinstance(ours, str) and ours in ("wte", "lm_head")
        }
        return ends | {name.removeprefix(self.prefix): ours for name, ours in ends.items()}


def hf_names(config: Config) -> Names:
    return Names(config, TABLES[config.model_type](config), _BASE_PREFIX.get(config.model_type, ""))


def lit_gpt_names(config: Config) -> Names:
    """Return the names of Lit-GPT and litgpt."""
    return Names(config, _lit_gpt(config))


def why_unexpected(name: str, folder: Path) -> str:
    """Return the reason why a tensor in a file has no place in the model, and the next step."""
    reason = next((reason for pattern, reason in _FOREIGN.items() if re.search(pattern, name)), None)
    if reason == QUANTIZED:
        return reason
    return (
        f"{reason or 'the model that the config describes has no such tensor'}. If the model is complete without it, write it "
        f"again: transformers.AutoModelForCausalLM.from_pretrained('{folder}').save_pretrained('{folder}-clean')"
    )


def to_hf(config: Config, lit: dict[str, Reader]) -> Iterator[tuple[str, Tensor]]:
    """Yield upstream names and tensors from ours, one at a time; the inverse of `Names.ours`. A tied head is omitted.

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
