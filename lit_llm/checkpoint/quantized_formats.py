"""Layouts of linears in pre-quantized checkpoints: how the tensors of one linear become its weight.

A class per `quant_method` of `quantization_config` in config.json; its fields are the keys that describe the layout. A weight
is scale * (code - zero point), or scale * table[code]; layouts differ in how codes are packed and how weights share a scale.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from lit_llm.errors import CheckpointError
from lit_llm.model.config_json import Keys

CODES = (torch.uint8,)
WORDS = (torch.int32,)
INDICES = (torch.int32, torch.int64)
SCALES = (torch.float32, torch.float16, torch.bfloat16)
"""dtypes of stored tensors."""
CHUNK_SIZE = 2**20
"""Weights to compute at once: unpacked codes and scales take some 40 bytes for each."""


@dataclass(frozen=True)
class Parts:
    """The stored tensors of one linear, by the end of their names."""

    where: str
    """Beginning of messages."""
    stem: str
    """Name of the linear: that of a tensor is `stem` + the end."""
    tensors: Mapping[str, Tensor]

    def __contains__(self, part: str) -> bool:
        return part in self.tensors

    def __getitem__(self, part: str) -> Tensor:
        """Raise CheckpointError if the tensor is missing."""
        if part not in self.tensors:
            raise self.missing(part)
        return self.tensors[part]

    def tensor(self, part: str, dtypes: Sequence[torch.dtype], *shape: int | None) -> Tensor:
        """Return a tensor. Raise CheckpointError if it is missing, or has another dtype or shape; None is any size."""
        tensor = self[part]
        if tensor.dtype not in dtypes:
            expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise self.wrong(part, f"has dtype {str(tensor.dtype).removeprefix('torch.')}, expected {expected}")
        if tensor.dim() != len(shape) or any(size not in (n, None) for n, size in zip(tensor.shape, shape, strict=True)):
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.wrong(part, f"has shape {list(tensor.shape)}, expected [{expected}]")
        return tensor

    def missing(self, part: str) -> CheckpointError:
        found = ", ".join(f"{self.stem}{name}" for name in sorted(self.tensors))
        return CheckpointError(f"{self.where}{self.stem}{part} is missing, next to {found}. Download the checkpoint again")

    def wrong(self, part: str, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.where}{self.stem}{part} {reason}. Weights and quantization_config do not belong together. "
            "Download the checkpoint again"
        )


@dataclass(frozen=True)
class Rows:
    """A weight that is computed some rows at a time."""

    n_rows: int
    n_columns: int
    compute: Callable[[slice], Tensor]
    """Rows -> their values (rows, n_columns)."""

    def tensor(self, dtype: torch.dtype) -> Tensor:
        """Return the weight (n_rows, n_columns), each value rounded once."""
        out = torch.empty(self.n_rows, self.n_columns, dtype=dtype)
        step = max(32, CHUNK_SIZE // max(1, self.n_columns) // 32 * 32)  # packed rows share words
        for start in range(0, self.n_rows, step):
            rows = slice(start, min(start + step, self.n_rows))
            out[rows] = self.compute(rows)
        return out


class Format(Protocol):
    """One `quant_method`."""

    parts: ClassVar[tuple[str, ...]]
    """Ends of the names of a linear's tensors. Any of them except `.weight` marks a linear as quantized."""
    result: ClassVar[str]
    """End of the name of the weight."""

    @classmethod
    def read(cls, k: Keys) -> "Format":
        """Read the keys of `quantization_config`. Raise CheckpointError for a value that is not supported."""
        ...

    def weight(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        """Return the weight (out_features, in_features).

        Raises:
            CheckpointError: if a tensor is missing or does not fit. The message names it.
        """
        ...


def unpack(words: Tensor, bits: int, n: int) -> Tensor:
    """Return `n` codes of `bits` bits each from 32-bit words (n * bits / 32, ...): a stream of bits, the lowest first."""
    start = torch.arange(n) * bits
    first, shift = start // 32, (start % 32).view(-1, *[1] * (words.dim() - 1))
    wide = words.long() & 0xFFFFFFFF
    codes = wide[first] >> shift
    if 32 % bits:  # a code may begin in one word and end in the next
        after = wide[(first + 1).clamp(max=len(wide) - 1)]
        codes |= after << (32 - shift)
    return codes & (2**bits - 1)


class Shared:
    """Values that blocks of a weight (out, in) share: each weight reads row `of_row[i]` and column `of_column[j]` of a grid."""

    def __init__(self, of_row: Tensor, of_column: Tensor) -> None:
        self.of_row, self.of_column = of_row, of_column

    def spread(self, grid: Tensor, rows: slice) -> Tensor:
        """Return the value (rows, in) of each weight."""
        return grid[self.of_row[rows]][:, self.of_column]


@dataclass(frozen=True)
class Gptq:
    """AutoGPTQ and GPTQModel (https://arxiv.org/abs/2210.17323): codes packed along the inputs, zero points along the outputs.

    - `qweight` (in * bits / 32, out) int32, `qzeros` (groups, out * bits / 32) int32, `scales` (groups, out),
    - `g_idx` (in,) the group of each input, which `desc_act` puts out of order.
    """

    parts: ClassVar[tuple[str, ...]] = (".qweight", ".qzeros", ".scales", ".g_idx")
    result: ClassVar[str] = ".weight"
    bits: int
    group_size: int
    desc_act: bool
    is_v2: bool
    """Zero points are stored as they are; before, each is stored minus 1."""

    @classmethod
    def read(cls, k: Keys) -> "Gptq":
        return cls(
            bits=k.only("bits", 4, 2, 3, 8),
            group_size=_group_size(k),
            desc_act=k.flag("desc_act", False),
            is_v2=k.only("checkpoint_format", "gptq", "gptq_v2") == "gptq_v2",
        )

    def weight(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        words = parts.tensor(".qweight", WORDS, None, None)
        n_in, n_out = len(words) * 32 // self.bits, words.size(1)
        if ".g_idx" not in parts and self.desc_act:
            raise parts.missing(".g_idx")  # desc_act: the groups are out of order
        groups, of_column = _groups(parts, ".g_idx", n_in, self.group_size)
        scales = parts.tensor(".scales", SCALES, groups, n_out).t()
        zeros = parts.tensor(".qzeros", WORDS, groups, n_out * self.bits // 32).t()
        shared = Shared(torch.arange(n_out), of_column)

        def compute(rows: slice) -> Tensor:
            zero = unpack(zeros[_words(rows, self.bits)], self.bits, rows.stop - rows.start)
            if not self.is_v2:
                zero = (zero + 1) & (2**self.bits - 1)  # a zero point of 0 is stored as the largest code
            codes = unpack(words[:, rows], self.bits, n_in).t() - zero[:, of_column]
            return codes * shared.spread(scales.float(), rows)

        return Rows(n_out, n_in, compute).tensor(dtype)


@dataclass(frozen=True)
class Awq:
    """AutoAWQ's `gemm` layout (https://arxiv.org/abs/2306.00978): codes and zero points packed along the outputs, interleaved.

    `qweight` (in, out / 8) int32, `qzeros` (groups, out / 8) int32, `scales` (groups, out).
    """

    parts: ClassVar[tuple[str, ...]] = (".qweight", ".qzeros", ".scales")
    result: ClassVar[str] = ".weight"
    PLACES: ClassVar = (0, 4, 1, 5, 2, 6, 3, 7)
    """Place in its word of each of 8 neighbouring outputs."""
    group_size: int

    @classmethod
    def read(cls, k: Keys) -> "Awq":
        k.only("bits", 4)
        k.only("version", "gemm", "GEMM")
        return cls(_group_size(k))

    def weight(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        words = parts.tensor(".qweight", WORDS, None, None)
        n_in, n_out = len(words), words.size(1) * 8
        groups, of_column = _groups(parts, "", n_in, self.group_size)
        scales = parts.tensor(".scales", SCALES, groups, n_out).t()
        zeros = parts.tensor(".qzeros", WORDS, groups, n_out // 8)
        shared = Shared(torch.arange(n_out), of_column)

        def codes(packed: Tensor, rows: slice) -> Tensor:
            """Return (rows, n) from words (n, out / 8)."""
            stored = unpack(packed.t()[_words(rows, 4)], 4, rows.stop - rows.start)
            return stored.unflatten(0, (-1, 8))[:, list(self.PLACES)].flatten(0, 1)

        def compute(rows: slice) -> Tensor:
            return (codes(words, rows) - codes(zeros, rows)[:, of_column]) * shared.spread(scales.float(), rows)

        return Rows(n_out, n_in, compute).tensor(dtype)


_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Fp8:
    """8-bit floats with a scale per block or per tensor, as DeepSeek, Qwen and Mistral publish them.

    `weight` (out, in) float8, and `weight_scale_inv` or `weight_scale`. Both multiply, whatever the name says.
    """

    parts: ClassVar[tuple[str, ...]] = (".weight", ".weight_scale_inv", ".weight_scale")
    result: ClassVar[str] = ".weight"
    block: tuple[int, int] | None

    @classmethod
    def read(cls, k: Keys) -> "Fp8":
        return cls(_block(k, "weight_block_size"))

    def weight(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        name = ".weight_scale" if ".weight_scale" in parts else ".weight_scale_inv"
        weight = parts.tensor(".weight", _FLOAT8, None, None)
        n_out, n_in = weight.shape
        scale, shared = _grid(parts, name, n_out, n_in, self.block, None)
        compute = lambda rows: weight[rows].float() * shared.spread(scale, rows)  # noqa: E731
        return Rows(n_out, n_in, compute).tensor(dtype)


@dataclass(frozen=True)
class CompressedTensors:
    """The formats of llm-compressor (https://github.com/vllm-project/compressed-tensors).

    - `weight_packed` (out, in * bits / 32) int32, codes along the inputs, and `weight_shape` (2,); or else `weight` (out, in)
      in int8 or float8.
    - `weight_scale` (out, groups), (out, 1), (1,), or one for each block. `weight_g_idx` (in,), if groups are out of order.
    - `weight_zero_point`, of the shape of the scales in int8; for packed codes it is packed along the outputs.
    """

    parts: ClassVar[tuple[str, ...]] = (
        ".weight",
        ".weight_packed",
        ".weight_scale",
        ".weight_zero_point",
        ".weight_shape",
        ".weight_g_idx",
    )
    result: ClassVar[str] = ".weight"
    FORMATS: ClassVar = ("pack-quantized", "float-quantized", "naive-quantized", "int-quantized", "mixed-precision", "dense")
    bits: tuple[int, ...]
    """Bits of packed codes; linears may differ."""
    block: tuple[int, int] | None

    @classmethod
    def read(cls, k: Keys) -> "CompressedTensors":
        k.only("format", *cls.FORMATS)
        if k.object("transform_config"):
            raise CheckpointError("transform_config is not supported: it rotates hidden states, which changes the model")
        if k.object("sparsity_config").get("format", "dense") != "dense":
            raise CheckpointError("sparsity_config is not supported: its weights are stored without their zeros")
        groups = Keys(k.object("config_groups"))
        weights = [Keys(Keys(groups.object(name)).object("weights")) for name in k.object("config_groups")]
        for name in k.object("config_groups"):
            Keys(groups.object(name)).only("format", None, *cls.FORMATS)
        blocks = [block for block in (_block(w, "block_structure") for w in weights) if block is not None]
        return cls(tuple(sorted({w.size("num_bits", 8, 8) for w in weights})), blocks[0] if blocks else None)

    def weight(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        if ".weight_packed" not in parts:
            weight = parts.tensor(".weight", (torch.int8, *_FLOAT8), None, None)
            n_out, n_in = weight.shape
            scale, shared = _grid(parts, ".weight_scale", n_out, n_in, self.block, ".weight_g_idx")
            zeros = None
            if ".weight_zero_point" in parts:
                shape = parts[".weight_scale"].shape
                zeros = parts.tensor(".weight_zero_point", (torch.int8, *_FLOAT8), *shape).float().view(scale.shape)
            return _scaled(lambda rows: weight[rows].float(), zeros, scale, shared, n_out, n_in).tensor(dtype)
        words = parts.tensor(".weight_packed", WORDS, None, None)
        n_out, n_in = (int(n) for n in parts.tensor(".weight_shape", INDICES, 2))
        bits = next((b for b in self.bits if n_in > 0 and words.shape == (n_out, -(-n_in * b // 32))), None)
        if bits is None:
            sizes = f"{n_out} x {n_in} weights of {' or '.join(map(str, self.bits))} bits"
            raise parts.wrong(".weight_packed", f"has shape {list(words.shape)}, which does not hold {sizes}")
        scale, shared = _grid(parts, ".weight_scale", n_out, n_in, None, ".weight_g_idx")
        zeros = torch.full_like(scale, 2 ** (bits - 1))
        if ".weight_zero_point" in parts:
            packed = parts.tensor(".weight_zero_point", WORDS, -(-len(scale) * bits // 32), scale.size(1))
            zeros = unpack(packed, bits, len(scale)).float()
        codes = lambda rows: unpack(words[rows].t(), bits, n_in).t().float()  # noqa: E731
        return _scaled(codes, zeros, scale, shared, n_out, n_in).tensor(dtype)


@dataclass(frozen=True)
class Mxfp4:
    """OCP microscaling (https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf, 5.2) of gpt-oss:
    32 inputs share a power of two.

    `blocks` (experts, out, in / 32, 16) uint8: two codes per byte, the lower one first; `scales` (experts, out, in / 32) uint8:
    the exponent plus 127. The result is (experts, in, out), as transformers holds it.
    """

    parts: ClassVar[tuple[str, ...]] = ("_blocks", "_scales")
    result: ClassVar[str] = ""
    CODES: ClassVar = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)

    @classmethod
    def read(cls, k: Keys) -> "Mxfp4":
        return cls()

    def weight(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        blocks = parts.tensor("_blocks", CODES, None, None, None, 16)
        n_experts, n_out, n_blocks, _ = blocks.shape
        scales = parts.tensor("_scales", CODES, n_experts, n_out, n_blocks).flatten(0, 1)
        codes, packed = torch.tensor(self.CODES), blocks.reshape(-1, n_blocks, 16)

        def compute(rows: slice) -> Tensor:
            values = codes[torch.stack((packed[rows] & 15, packed[rows] >> 4), dim=-1).int()].flatten(2)
            return torch.ldexp(values, scales[rows].int()[..., None] - 127).flatten(1)

        return Rows(len(packed), n_blocks * 32, compute).tensor(dtype).view(n_experts, n_out, -1).mT


def _group_size(k: Keys) -> int:
    """Return the number of inputs that share a scale; -1: all."""
    return -1 if k.get("group_size", 128) == -1 else k.size("group_size", 128)


def _block(k: Keys, key: str) -> tuple[int, int] | None:
    """Return the rows and columns of a block."""
    block = k.integers(key)
    if len(block) not in (0, 2) or min(block, default=1) < 1:
        raise CheckpointError(f"{key} must be two positive integers, found {block}")
    return (block[0], block[1]) if block else None


def _words(rows: slice, bits: int) -> slice:
    """Return the 32-bit words that hold the codes of `rows`, which begin at a word."""
    return slice(rows.start * bits // 32, -(-rows.stop * bits // 32))


def _groups(parts: Parts, index: str, n_in: int, group_size: int) -> tuple[int, Tensor]:
    """Return the number of groups, and the group (in,) of each input, which the tensor `index` names if it is there."""
    size = n_in if group_size == -1 else group_size
    groups = -(-n_in // max(size, 1))
    if index not in parts:
        return groups, torch.arange(n_in) // max(size, 1)
    of_column = parts.tensor(index, INDICES, n_in).long()
    if n_in and not 0 <= of_column.min() <= of_column.max() < groups:
        raise parts.wrong(index, f"names group {of_column.max()}, but there are {groups} groups of {size} inputs")
    return groups, of_column


def _grid(
    parts: Parts, name: str, n_out: int, n_in: int, block: tuple[int, int] | None, index: str | None
) -> tuple[Tensor, Shared]:
    """Return scales as a float32 grid, and how weights (out, in) share them: all, each row, groups of inputs, or blocks."""
    scale = parts.tensor(name, (*SCALES, torch.float8_e8m0fnu), *parts[name].shape).float()
    scale = scale.view(1, 1) if scale.numel() == 1 else scale.view(-1, 1) if scale.dim() == 1 else scale
    height, width = block or (0, 0)
    if not block or scale.shape != (-(-n_out // height), -(-n_in // width)):
        if scale.dim() != 2 or len(scale) not in (1, n_out) or not scale.size(1) or n_in % scale.size(1):
            blocks = f"blocks of {height} x {width}" if block else "groups"
            raise parts.wrong(
                name, f"has shape {list(parts[name].shape)}, which does not divide {n_out} x {n_in} into {blocks}"
            )
        height, width = n_out // len(scale), n_in // scale.size(1)
    of_column = torch.arange(n_in) // width
    if index is not None and index in parts and bool((parts[index] >= 0).all()):  # -1: not set
        of_column = _groups(parts, index, n_in, width)[1]
    return scale, Shared(torch.arange(n_out) // height, of_column)


def _scaled(
    codes: Callable[[slice], Tensor], zeros: Tensor | None, scale: Tensor, shared: Shared, n_out: int, n_in: int
) -> Rows:
    """Return (codes - zeros) * scale, with grids of zeros and scales."""

    def compute(rows: slice) -> Tensor:
        values = codes(rows) if zeros is None else codes(rows) - shared.spread(zeros, rows)
        return values * shared.spread(scale, rows)

    return Rows(n_out, n_in, compute)
