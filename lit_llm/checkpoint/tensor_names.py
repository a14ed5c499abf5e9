"""Names of the tensors in files, and of ours, by the table of the family."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

from torch import Tensor

from lit_llm.checkpoint.tables import TABLES, lit_gpt_table
from lit_llm.checkpoint.tables.experts import together
from lit_llm.checkpoint.tables.rows import Fused, Row, Stacked, Table, names_of
from lit_llm.errors import CheckpointError
from lit_llm.files import read_json_object
from lit_llm.model.config import Config
from lit_llm.model.families import TextPart, text_part

# Tensors of old checkpoints that the model computes itself: tables of RoPE and causal masks.
_COMPUTED = re.compile(
    r"(^|\.)((\w+_)?inv_freq|(cos|sin)(_cached?)?|(causal_|attention_|bias_)?mask(_cache)?|masked_bias|rope_cache|position_ids"
    r"|(attention|self_attn|attn)\.bias)$"
)
# Some checkpoints hold only the decoder: its tensors lack this prefix.
_BASE_PREFIX = {"gpt2": "transformer.", "openai-gpt": "transformer.", "bloom": "transformer.", "opt": "model."}

# Layers after the last one, or modules of their own, predict the tokens after the next for speculative decoding; transformers
# ignores them too.
_PREDICT_LATER_TOKENS = {
    **dict.fromkeys(("glm4_moe", "deepseek_v3", "kimi_k2", "glm4_moe_lite"), r"^model\.layers\.(\d+)\."),
    "ernie4_5_moe": r"^model\.mtp_",
    **dict.fromkeys(("exaone_moe", "mellum", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), r"^mtp\."),
}

QUANTIZED = (
    "the weights are quantized, but quantization_config in config.json is missing or of another format. Copy config.json from "
    "the checkpoint that they belong to, or use the original one and quantize it while loading: `quantize` bnb.nf4"
)
LEAVES = ("weight", "bias", "absmax", "nested_absmax", "nested_offset")
"""Parameters of linears, of those in stored bits included."""
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
    part: TextPart | None = None
    """The row of a multimodal model, whose other tensors are omitted."""
    folder: Path | None = None
    """Folder of the files, for messages."""

    def ours(self, tensors: Iterable[tuple[str, Reader]]) -> Iterator[Stored]:
        """Yield our tensors for those in files. Only fused ones are read here, to be split.

        If embedding and head are tied, the first of them is used: `tied_as_stored` has compared them. Warn of tensors that are
        omitted.

        Raises:
            CheckpointError: for a fused tensor of the wrong size.
        """
        has_embedding, omitted = False, Counter[str]()
        table = None if self.table is None else self.table | together(self.table)
        for name, read in tensors:
            if table is None:
                yield Stored(name, name, read)
                continue
            of_family = name if self.part is None else self.part.name(name)
            if of_family is None:
                omitted[".".join(name.split(".")[: 2 if name.startswith("model.") else 1])] += 1
                continue
            found = _find(table, of_family) or _find(table, self.prefix + of_family)
            if found is None:
                if not _COMPUTED.search(name) and not self._predicts_later_tokens(name):
                    yield Stored(None, name, read)
                continue
            entry, kind, indices = found
            if indices and self._predicts_later_tokens(name):
                continue
            if entry in ("wte", "lm_head") and kind == ".weight" and self.config.tie_embeddings:
                if not has_embedding:
                    yield Stored("wte.weight", name, read)
                has_embedding = True
            elif isinstance(entry, str):
                yield Stored(entry.format(*indices) + kind, name, read)
            else:
                parts = entry.parts(self.config, indices)
                for part_name, part in zip(parts, self._split(entry, name, read), strict=True):
                    yield Stored(part_name + kind, name, lambda part=part: part.contiguous())
        if omitted:
            parts = ", ".join(f"{prefix} ({n})" for prefix, n in sorted(omitted.items()))
            warnings.warn(f"the text model is opened alone; {omitted.total()} tensors are omitted: {parts}", stacklevel=2)

    def modules(self, upstream: str) -> tuple[list[str], bool]:
        """Return our modules in an upstream one, and whether upstream stores its weight transposed."""
        name = f"{upstream}.weight" if self.part is None else self.part.name(f"{upstream}.weight")
        found = None if name is None or self.table is None else _find(self.table, name) or _find(self.table, self.prefix + name)
        if found is None:
            return [], False
        entry, _, indices = found
        names = [entry.format(*indices)] if isinstance(entry, str) else entry.parts(self.config, indices)
        return names, isinstance(entry, Fused) and entry.transposed

    def _predicts_later_tokens(self, name: str) -> bool:
        pattern = _PREDICT_LATER_TOKENS.get(self.config.model_type)
        found = None if pattern is None else re.search(pattern, name)
        return found is not None and all(int(layer) >= self.config.n_layer for layer in found.groups())

    def _split(self, entry: Fused | Stacked | Row, name: str, read: Reader) -> Sequence[Tensor]:
        try:
            return entry.split(self.config, read())
        except CheckpointError as error:
            where = "" if self.folder is None else f"{self.folder}: "
            raise CheckpointError(f"{where}tensor {name} {error}. Download the checkpoint again") from error

    def upstream(self, name: str) -> str:
        """Return the name in the files of one of our tensors."""
        if self.table is None:
            return name
        rows = {ours: theirs for theirs, entry in self.table.items() for ours in names_of(entry)}
        theirs, kind, indices = _find(rows, name) or (name, "", [])
        found = theirs.format(*indices) + kind
        return found if self.part is None else self.part.stored_names(found)[0]

    def ends(self) -> dict[str, str]:
        """Return `wte` or `lm_head` for every name of the weight of embedding or head in files."""
        rows = {} if self.table is None else self.table
        ends = {
            f"{theirs}.weight": ours for theirs, ours in rows.items() if isinstance(ours, str) and ours in ("wte", "lm_head")
        }
        if self.part is not None:
            return {stored: ours for name, ours in ends.items() for stored in self.part.stored_names(name)}
        return ends | {name.removeprefix(self.prefix): ours for name, ours in ends.items()}


def hf_names(config: Config, checkpoint_dir: Path | None = None) -> Names:
    """Return the names of a family; in a folder in Hugging Face's layout, whose `config.json` may be of a multimodal model."""
    path = checkpoint_dir and checkpoint_dir / "config.json"
    part = text_part(read_json_object(path)) if path and path.is_file() else None
    return Names(config, TABLES[config.model_type](config), _BASE_PREFIX.get(config.model_type, ""), part, checkpoint_dir)


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
    rows = {ours: row for row in (table or TABLES[config.model_type](config)).items() for ours in names_of(row[1])}
    for name in list(lit):
        if name not in lit or (name == "lm_head.weight" and config.tie_embeddings):
            continue  # written with an earlier part
        (theirs, entry), kind, indices = _find(rows, name) or _unknown(name)
        if isinstance(entry, str):
            yield theirs.format(*indices) + kind, lit.pop(name)()
        else:
            parts = [lit.pop(part + kind)() for part in entry.parts(config, indices)]
            yield theirs.format(*indices) + kind, entry.join(config, parts)


def _unknown(name: str) -> NoReturn:
    raise KeyError(f"the table of the family has no row for {name}")


def parts_of_family(config: Config) -> set[str]:
    """Return our modules, or tensors, `{}` for each index, in the table of the family."""
    return {part for entry in TABLES[config.model_type](config).values() for part in names_of(entry)}


def parts_of_model(names: Iterable[str]) -> set[str]:
    """Return the modules, `{}` for each index, of weights and biases with these names of ours, and other tensors."""
    return {_split_kind(_pattern(name)[0])[0] for name in names}


T = TypeVar("T")


def _find(rows: Mapping[str, T], name: str) -> tuple[T, str, list[str]] | None:
    """Return the row of a tensor, or of its module, the kind that remains, and the indices in the name."""
    pattern, indices = _pattern(name)
    module, kind = _split_kind(pattern)
    if pattern in rows:
        return rows[pattern], "", indices
    return (rows[module], kind, indices) if kind and module in rows else None


def _split_kind(name: str) -> tuple[str, str]:
    """Split a tensor's name into its module and `.weight` or another of LEAVES; other tensors have no kind."""
    module, dot, kind = name.rpartition(".")
    return (module, dot + kind) if kind in LEAVES else (name, "")


def _pattern(name: str) -> tuple[str, list[str]]:
    """Return a tensor's name with `{}` for each index, and the indices."""
    index = r"(?<=\.)\d+(?=\.|$)"
    return re.sub(index, "{}", name), re.findall(index, name)
