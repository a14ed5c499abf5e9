"""Checkpoints whose weights are quantized already (`quantization_config` in config.json), read one linear at a time.

The stored tensors decide what is quantized: a list of exceptions in config.json is not needed. Weights that a kernel of ours
can multiply with are held as they are stored, others are dequantized.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lit_llm.checkpoint.bnb_format import Bitsandbytes
from lit_llm.checkpoint.quantized_formats import Awq, CompressedTensors, Format, Fp8, Gptq, Mxfp4, Parts
from lit_llm.checkpoint.tensor_names import Names, Reader
from lit_llm.errors import CheckpointError
from lit_llm.files import read_json_object
from lit_llm.model.config import LIT_CONFIG
from lit_llm.model.config_json import Keys
from lit_llm.model.gpt import GPT
from lit_llm.model.quantized_linear import quantizable, quantize_linear
from lit_llm.schema import shown

FORMATS: dict[str, type[Format]] = {
    "bitsandbytes": Bitsandbytes,
    "gptq": Gptq,
    "awq": Awq,
    "fp8": Fp8,
    "compressed-tensors": CompressedTensors,
    "mxfp4": Mxfp4,
}

# Scales of activations and of the key/value cache, which are not quantized here.
_NOT_WEIGHTS = re.compile(r"\.((input|output|activation|[qkv]|kv)_(scale|zero_point)|input_g_idx)$")
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Tensors = Callable[[], Iterable[tuple[str, Reader]]]
"""Reads the tensors in the files from the start."""


@dataclass(frozen=True)
class Prequantized:
    """How a folder stores its quantized weights."""

    folder: Path
    method: str
    format: Format
    dtype: torch.dtype
    """dtype of dequantized weights: the model's own, in config.json."""

    @property
    def quantization(self) -> str | None:
        """The `quantize` whose linears have the stored bits. None: no linear of ours has."""
        return self.format.quantization if isinstance(self.format, Bitsandbytes) else None

    def weights(self, tensors: Tensors, names: Names, held: Mapping[str, str] | None = None) -> Iterator[tuple[str, Reader]]:
        """Yield tensors as a folder without quantization has them: a weight for all tensors of a linear, computed when read.

        Args:
            held: Quantization of the linears to hold as stored, by upstream name. Their parameters are yielded instead.

        Raises:
            CheckpointError: if tensors of a linear are missing or do not fit together. Readers raise it too.
        """
        parts, held = self._linears(tensors), held or {}
        waiting: dict[str, dict[str, Reader]] = {stem: {} for stem in parts}
        for name, read in tensors():
            if _NOT_WEIGHTS.search(name):
                continue
            stem, part = self._split(name)
            if stem not in parts:
                yield name, read
                continue
            if part in waiting[stem]:
                raise CheckpointError(f"{self.folder}: tensor {name} is there twice. Download the checkpoint again")
            waiting[stem][part] = read
            if len(waiting[stem]) == len(parts[stem]):
                yield from self._parameters(stem, waiting[stem], names, held.get(stem))
                waiting[stem] = dict.fromkeys(waiting[stem], _used)

    def _parameters(
        self, stem: str, readers: Mapping[str, Reader], names: Names, quantization: str | None
    ) -> Iterator[tuple[str, Reader]]:
        def read() -> Parts:
            return Parts(f"{self.folder}: tensor ", stem, {part: read() for part, read in readers.items()})

        def weight() -> torch.Tensor:
            tensor = self.format.weight(read(), self.dtype)
            return tensor.t() if names.modules(stem)[1] else tensor

        if quantization is None:
            yield f"{stem}{self.format.result}", weight
            return
        assert isinstance(self.format, Bitsandbytes)
        for leaf, tensor in self.format.held(read(), quantization).items():
            yield f"{stem}.{leaf}", lambda tensor=tensor: tensor

    def hold(self, model: GPT, tensors: Tensors, names: Names, in_parts: bool) -> dict[str, str]:
        """Replace the linears that can hold the stored bits by empty quantized ones; return `held` for `weights`.

        Args:
            in_parts: As in `quantize_linears`.
        """
        assert isinstance(self.format, Bitsandbytes)
        kept: dict[str, dict[str, torch.Tensor]] = {stem: {} for stem in self._linears(tensors)}
        for name, read in tensors():
            stem, part = self._split(name)
            if stem in kept and part not in ("", ".weight", ".SCB"):
                kept[stem][part] = read()
        held, candidates = {}, set(quantizable(model))
        for stem, tables in kept.items():
            modules, is_transposed = names.modules(stem)
            quantization = self.format.held_as(Parts(f"{self.folder}: tensor ", stem, tables))
            if quantization is None or is_transposed or not modules or not candidates.issuperset(modules):
                continue
            if len(modules) > 1:  # parts of a fused weight: groups of scales cross their borders
                quantization = quantization.removesuffix("-dq")
            held[stem] = quantization
            for module in modules:
                quantize_linear(model, module, quantization, in_parts)
        return held

    def _linears(self, tensors: Tensors) -> dict[str, set[str]]:
        """Return the ends of the names of each linear's tensors, for those that are quantized."""
        found: dict[str, set[str]] = {}
        for name, _ in tensors():
            stem, part = self._split(name)
            if part and not _NOT_WEIGHTS.search(name):
                found.setdefault(stem, set()).add(part)
        return {stem: parts for stem, parts in found.items() if parts != {".weight"}}

    def _split(self, name: str) -> tuple[str, str]:
        """Return a tensor's linear and the end of its name; an empty end if it is not of a linear."""
        part = next((part for part in self.format.parts if name.endswith(part)), "")
        return name.removesuffix(part), part

    def about(self, n_held: int, quantize: str | None) -> str:
        """Return one line: how the stored weights are held."""
        stored = f"{self.folder}: {self.method} weights"
        held = f"{n_held} linears are held as stored, in {self.quantization}"
        if quantize == self.quantization and n_held:
            return f"{stored}: {held}; others in {str(self.dtype).removeprefix('torch.')} or as stored"
        then = f" and quantized to {quantize}" if quantize not in (None, self.quantization) else ""
        return f"{stored} are dequantized to {str(self.dtype).removeprefix('torch.')}{then} while loading"


def _used() -> torch.Tensor:
    raise AssertionError("a tensor is read once")


def prequantized(checkpoint_dir: Path) -> Prequantized | None:
    """Return how a folder in Hugging Face's layout stores quantized weights; None for others.

    Raises:
        CheckpointError: if it does so in a way that is not supported.
    """
    path = checkpoint_dir / "config.json"
    if (checkpoint_dir / LIT_CONFIG).is_file() or not path.is_file():
        return None
    return read_quantization(path)


def read_quantization(path: Path) -> Prequantized | None:
    """As `prequantized`, of a config.json, also if the folder was converted."""
    values = read_json_object(path)
    about = values.get("quantization_config")
    if about is None:
        return None
    try:
        k = Keys(about if isinstance(about, dict) else {})
        method = k.get("quant_method", "bitsandbytes" if k.get("load_in_4bit", False) or k.get("load_in_8bit", False) else None)
        if not isinstance(method, str) or method not in FORMATS:
            raise CheckpointError(
                f"quant_method {shown(method)} is not supported; supported: {', '.join(FORMATS)}. "
                "Use the original checkpoint and quantize it while loading: `quantize` bnb.nf4"
            )
        dtype = _DTYPES.get(str(values.get("dtype") or values.get("torch_dtype")), torch.bfloat16)
        return Prequantized(path.parent, method, FORMATS[method].read(k), dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: quantization_config: {error}") from error


def stored_quantization(checkpoint_dir: Path) -> str | None:
    """Return the `quantize` whose linears hold the bits of a folder as they are stored; None if there is none."""
    stored = prequantized(checkpoint_dir)
    return None if stored is None else stored.quantization
