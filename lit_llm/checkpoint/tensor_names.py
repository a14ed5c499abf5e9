"""Names of the tensors in files, and of ours, by the table of the family."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from lit_llm.checkpoint.tables import TABLES, lit_gpt_table
from lit_llm.checkpoint.tables.rows import Fused, Table, names_of
from lit_llm.errors import CheckpointError
from lit_llm.model.config import Config

# Tensors of old checkpoints that the model computes itself: tables of RoPE and causal masks.
_COMPUTED = re.compile(
    r"(^|\.)((\w+_)?inv_freq|(cos|sin)(_cached?)?|(causal_|attention_|bias_)?mask(_cache)?|masked_bias|rope_cache|position_ids"
    r"|(attention|self_attn|attn)\.bias)$"
)
# Some checkpoints hold only the decoder: its tensors lack this prefix.
_BASE_PREFIX = {"gpt2": "transformer.", "openai-gpt": "transformer.", "bloom": "transformer.", "opt": "model."}

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
    return Names(config, lit_gpt_table(config))


def why_unexpected(name: str, folder: Path) -> str:
    """Return the reason why a tensor in a file has no place in the model, and the next step."""
    reason = next((reason for pattern, reason in _FOREIGN.items() if re.search(pattern, name)), None)
    if reason == QUANTIZED:
        return reason
    return (
        f"{reason or 'the model that the config describes has no such tensor'}. If the model is complete without it, write it "
        f"again: transformers.AutoModelForCausalLM.from_pretrained('{folder}').save_pretrained('{folder}-clean')"
    )


def to_hf(config: Config, lit: dict[str, Reader], table: Table | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield upstream names and tensors from ours, one at a time; the inverse of `Names.ours`. A tied head is omitted.

    Another `table` than that of the family gives the names and the layout of other files.

    Readers are removed from `lit` once used, so that a file is closed after its last tensor.
    """
    entries = {}  # by the first of our modules
    later_parts = set()
    for module, entry in (table or TABLES[config.model_type](config)).items():
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
