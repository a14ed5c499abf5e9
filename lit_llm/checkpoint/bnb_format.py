"""Linears as transformers saves them with bitsandbytes: in 4 bits, or in 8 as LLM.int8()."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llm.checkpoint.quantized_formats import CODES, SCALES, Parts, Rows
from lit_llm.files import parse_json
from lit_llm.model.config_json import Keys
from lit_llm.model.quantized_linear import BLOCK_SIZE, NESTED_BLOCK_SIZE, dynamic_code, four_bit_code
from lit_llm.schema import conform, shown

BLOCK_SIZES = tuple(2**n for n in range(5, 13))
"""Those that bitsandbytes has."""
_STATES = tuple(f".weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))


class _QuantState(TypedDict):
    """Contents of `weight.quant_state.*` that are read."""

    quant_type: Literal["nf4", "fp4"]
    blocksize: int
    shape: list[int]


class _NestedState(TypedDict):
    nested_blocksize: int
    nested_offset: float


@dataclass(frozen=True)
class Bitsandbytes:
    """bitsandbytes as transformers saves it: 4 bits (https://arxiv.org/abs/2305.14314) or LLM.int8() (2208.07339).

    - `weight` two 4-bit codes per byte, the upper one first, of all weights row after row; `weight.quant_map` (16,) their
      values; `weight.absmax` the scale of each block of them; `weight.quant_state.*` JSON bytes. With double quantization
      `absmax` is in 8 bits, with `weight.nested_absmax` and `weight.nested_quant_map` (256,).
    - Or `weight` (out, in) int8 and `SCB` (out,), the largest magnitude of each row.
    """

    parts: ClassVar[tuple[str, ...]] = (
        ".weight", ".SCB", ".weight_format", ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax",
        ".weight.nested_quant_map", *_STATES,
    )  # fmt: skip
    result: ClassVar[str] = ".weight"
    quantization: str
    """The same bits in our names."""

    @classmethod
    def read(cls, k: Keys) -> "Bitsandbytes":
        if k.flag("load_in_8bit", False):
            return cls("bnb.int8")
        nested = k.flag("bnb_4bit_use_double_quant", False)
        return cls(f"bnb.{k.only('bnb_4bit_quant_type', 'fp4', 'nf4')}{'-dq' if nested else ''}")

    def weight(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        if ".SCB" in parts:
            weight, scale = self._int8(parts)
            return Rows(len(weight), weight.size(1), lambda rows: weight[rows] * (scale[rows, None] / 127)).tensor(dtype)
        state, absmax, codes = _state(parts), self._absmax(parts), self._bytes(parts)
        table, size = parts.tensor(".weight.quant_map", SCALES, 16).float(), state["blocksize"]
        codes = F.pad(codes, (0, len(absmax) * size // 2 - len(codes))).view(len(absmax), -1)

        def compute(blocks: slice) -> Tensor:
            values = table[torch.stack((codes[blocks] >> 4, codes[blocks] & 15), dim=-1).int()].flatten(1)
            return values * absmax[blocks, None]

        n = math.prod(state["shape"])
        return Rows(len(absmax), size, compute).tensor(dtype).view(-1)[:n].view(state["shape"])

    def held_as(self, parts: Parts) -> str | None:
        """Return the quantization whose linear of ours has exactly these bits; None: none has.

        Args:
            parts: The small ones suffice: tables and `quant_state`.
        """
        if self.quantization == "bnb.int8":
            return self.quantization
        state = _state(parts)
        kind, nested = state["quant_type"], ".weight.nested_quant_map" in parts
        exact = state["blocksize"] == BLOCK_SIZE and state["shape"][-1] % BLOCK_SIZE == 0  # blocks do not cross rows
        exact = exact and torch.equal(parts.tensor(".weight.quant_map", SCALES, 16).float(), four_bit_code(kind))
        if nested and exact:
            nested = _nested_state(parts)["nested_blocksize"] == NESTED_BLOCK_SIZE
            table = parts.tensor(".weight.nested_quant_map", SCALES, 256).float()
            nested = nested and torch.equal(table, dynamic_code(torch.device("cpu")))
        return f"bnb.{kind}{'-dq' if nested else ''}" if exact else None

    def held(self, parts: Parts, quantization: str) -> dict[str, Tensor]:
        """Return the parameters of our linear, by their names in it, for `quantization` as `held_as` returns it."""
        if quantization == "bnb.int8":
            weight, scale = self._int8(parts)
            return {"weight": weight, "absmax": scale}
        n_out, n_in = _state(parts)["shape"]
        weight, grid = self._bytes(parts).view(n_out, n_in // 2), (n_out, n_in // BLOCK_SIZE)
        if not quantization.endswith("-dq"):
            return {"weight": weight, "absmax": self._absmax(parts).view(grid)}
        offset = torch.tensor([_nested_state(parts)["nested_offset"]], dtype=torch.float32)
        nested = {"nested_absmax": parts.tensor(".weight.nested_absmax", SCALES, None).float(), "nested_offset": offset}
        return {"weight": weight, "absmax": parts.tensor(".weight.absmax", CODES, math.prod(grid)).view(grid), **nested}

    def _int8(self, parts: Parts) -> tuple[Tensor, Tensor]:
        """Return codes (out, in) and scales (out,)."""
        weight = parts.tensor(".weight", (torch.int8,), None, None)
        if ".weight_format" in parts and (layout := int(parts.tensor(".weight_format", CODES))):
            raise parts.wrong(".weight_format", f"is {layout}, expected 0 (by rows)")  # for GPUs, before bitsandbytes 0.45
        return weight, parts.tensor(".SCB", SCALES, len(weight)).float()

    def _bytes(self, parts: Parts) -> Tensor:
        """Return the bytes of all codes. FSDP needs them in another dtype (`bnb_4bit_quant_storage`)."""
        codes, n = parts[".weight"].contiguous().flatten().view(torch.uint8), math.prod(_state(parts)["shape"])
        if len(codes) < -(-n // 2):
            raise parts.wrong(".weight", f"has {len(codes)} bytes, expected {-(-n // 2)} of its quant_state")
        return codes[: -(-n // 2)]

    def _absmax(self, parts: Parts) -> Tensor:
        """Return the scale (blocks,) of each block."""
        state = _state(parts)
        n_blocks = -(-math.prod(state["shape"]) // state["blocksize"])
        absmax = parts.tensor(".weight.absmax", (*CODES, *SCALES), n_blocks)
        if absmax.is_floating_point():
            return absmax.float()
        nested = _nested_state(parts)
        size = nested["nested_blocksize"]
        table = parts.tensor(".weight.nested_quant_map", SCALES, 256).float()
        scale = parts.tensor(".weight.nested_absmax", SCALES, -(-n_blocks // size)).float()
        return table[absmax.int()] * scale.repeat_interleave(size)[:n_blocks] + nested["nested_offset"]


def _state(parts: Parts) -> _QuantState:
    return _read_state(parts, _QuantState)


def _nested_state(parts: Parts) -> _NestedState:
    return _read_state(parts, _NestedState)


def _read_state(parts: Parts, schema: Any) -> Any:
    """Return the JSON object of `quant_state`."""
    name, again = next((state for state in _STATES if state in parts), _STATES[0]), "Download the checkpoint again"
    where = f"{parts.where}{parts.stem}{name}"
    state = conform(parse_json(bytes(parts.tensor(name, CODES, None).tolist()), where, again), schema, where, again)
    if len(shape := state.get("shape", [1, 1])) != 2 or min(shape) < 1:
        raise parts.wrong(name, f"has shape {shown(shape)}, expected rows and columns")
    for key in (key for key in state if key.endswith("blocksize")):
        if (size := state[key]) not in BLOCK_SIZES:
            raise parts.wrong(name, f"has {key} {size}, expected one of {', '.join(map(str, BLOCK_SIZES))}")
    return state
