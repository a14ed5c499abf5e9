"""Linears whose frozen weight is stored in 4 or 8 bits: bitsandbytes supplies the kernels, the modules are ours.

A block of weights w shares a scale: w is about code[q] * absmax, with absmax the largest |w| of the block and q in 4 or 8 bits.
All of it is in plain parameters, which load strictly, move, shard along dim 0, and quantize on any device.
"""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.errors import CheckpointError, OptionError
from lit_llm.model.gpt import GPT
from lit_llm.ranks import n_ranks, own_rows, whole_rows

QUANTIZATIONS: tuple[str, ...] = ("bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8")

BLOCK_SIZE = 64  # weights that share one scale in 4 bits
NESTED_BLOCK_SIZE = 256  # scales that share a scale of their own in "-dq" (https://arxiv.org/abs/2305.14314, sec. 3)

# Weights to quantize or, on a CPU, to dequantize at once: 4 MB in float32, which stays in cache. A copy of the whole weight
# costs page faults: with 4096 x 11008, one token took 8 times as long and 256 tokens backward 1.5 times.
CHUNK_SIZE = 2**20


def quantize_linears(model: GPT, quantization: str, in_parts: bool = False) -> None:
    """Replace every `nn.Linear` of the blocks, except routers, by an empty quantized one on the meta device.

    Its weight then comes from `load_weight` or, if it was quantized before, from a state dict.

    Args:
        in_parts: Each rank quantizes and keeps its own rows until `gather_rows`, if a weight has a row for each rank.

    Raises:
        OptionError: if `quantization` is not one of QUANTIZATIONS, or bitsandbytes is not installed.
    """
    if quantization not in QUANTIZATIONS:
        raise OptionError(f"`quantize` {quantization!r} does not exist. Use one of {', '.join(QUANTIZATIONS)}")
    for name in quantizable(model):
        quantize_linear(model, name, quantization, in_parts)


def quantizable(model: GPT) -> list[str]:
    """Return the names of the linears of the blocks, except routers."""
    linears = [name for name, module in model.h.named_modules(prefix="h") if isinstance(module, nn.Linear)]
    return [name for name in linears if not name.endswith("router")]


def quantize_linear(model: GPT, name: str, quantization: str, in_parts: bool = False) -> "QuantizedLinear":
    """Replace one linear as `quantize_linears` does, and return the new one."""
    _import_bitsandbytes()
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    kind, _, nested = quantization.removeprefix("bnb.").partition("-")
    shape = linear.in_features, linear.out_features, linear.bias
    new = LinearInt8(*shape) if kind == "int8" else Linear4bit(*shape, kind, nested=nested == "dq")
    new.in_parts = in_parts and new.out_features >= n_ranks()
    model.set_submodule(name, new)
    return new


class QuantizedLinear(nn.Module):
    """Base class of the quantized linears, which compute the same as `nn.Linear` with the weight `dequantize()`.

    `weight` and its scales are frozen parameters; `bias` is that of the replaced linear.
    """

    weight: nn.Parameter
    absmax: nn.Parameter

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = in_features, out_features, bias
        self.in_parts = False  # whether `weight` and `absmax` have the rows of this rank only

    def load_weight(self, weight: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> None:
        """Quantize `weight` (out_features, in_features), in half or single precision, onto `device`, a chunk at a time.

        With `in_parts` all ranks must call it, each with the whole weight.

        Args:
            dtype: dtype to cast the weight to first. None: no cast.

        Raises:
            CheckpointError: if the shape differs.
        """
        shape = (self.out_features, self.in_features)
        if tuple(weight.shape) != shape:
            raise CheckpointError(f"expected a weight of shape {shape}, found {tuple(weight.shape)}")
        rows = max(1, CHUNK_SIZE // self.in_features)
        own = own_rows(self.out_features) if self.in_parts else slice(None)
        self._store(chunk.to(device, dtype or weight.dtype) for chunk in weight.detach()[own].split(rows))

    def hold(self, leaf: str, stored: Tensor, device: torch.device | str) -> None:
        """Take over a parameter that was quantized before, as it is, onto `device`; with `in_parts`, the rows of this rank."""
        has_rows = leaf in ("weight", "absmax")
        own = stored[own_rows(self.out_features)] if self.in_parts and has_rows else stored
        setattr(self, leaf, _frozen(own.to(device, copy=True)))

    def first_row(self) -> Tensor:
        """Return the first row (in_features,) of `dequantize()`. With `in_parts` all ranks must call it."""
        return next(self._chunks(0, torch.float32))[0]

    def gather_rows(self) -> None:
        """Gather all rows, if each rank has only its own. All ranks must call it."""
        self.weight, self.absmax = _frozen(self._whole(self.weight)), _frozen(self._whole(self.absmax))
        self.in_parts = False

    def _whole(self, rows: Tensor) -> Tensor:
        return whole_rows(rows, self.out_features) if self.in_parts else rows

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight (out_features, in_features) that `forward` multiplies with."""
        return _join(self._chunks(0, dtype), dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features) in the dtype of `x`, or of autocast, as with `nn.Linear`."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y = _Product.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def product(self, x: Tensor) -> Tensor:
        """Return `x @ weight.T`, without a gradient."""
        return _join((F.linear(x, rows) for rows in self._chunks(0, x.dtype)), dim=-1)

    def product_backward(self, grad: Tensor) -> Tensor:
        """Return `grad @ weight`, the gradient of `x`. By columns: a sum over chunks of rows would round in half precision."""
        return _join((grad @ columns for columns in self._chunks(1, grad.dtype)), dim=-1)

    def _chunk_size(self, dim: int) -> int:
        """Return how many rows (`dim` 0) or columns (1, complete blocks) to dequantize at once: on a GPU, all."""
        elements = CHUNK_SIZE if self.weight.device.type == "cpu" else self.out_features * self.in_features
        step, length = (1, self.in_features) if dim == 0 else (BLOCK_SIZE, self.out_features)
        return max(step, elements // length // step * step)

    def _store(self, chunks: Iterator[Tensor]) -> None:
        """Quantize consecutive rows of a weight into the parameters."""
        raise NotImplementedError

    def _chunks(self, dim: int, dtype: torch.dtype) -> Iterator[Tensor]:
        """Dequantize the weight, consecutive rows (`dim` 0) or columns (1) at a time."""
        raise NotImplementedError

    def _apply(self, fn: Any, recurse: bool = True) -> "QuantizedLinear":
        """Let `.to(device)` move weight and scales, but keep `.to(dtype)` from rounding them: casts do not change bytes."""
        return super()._apply(lambda t: fn(t) if t is self.bias else fn(t.view(torch.uint8)).view(t.dtype), recurse)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Linear4bit(QuantizedLinear):
    """QLoRA's linear (https://arxiv.org/abs/2305.14314): 4-bit codes, and the largest magnitude of each 64 weights of a row.

    Rows are padded with zeros to whole blocks, so that parameters shard by rows: P is in_features rounded up to 64s.

    - `weight` (out_features, P / 2) uint8: two codes per byte,
    - `absmax` (out_features, P / 64) float32, or if `nested` uint8, with
    - `nested_absmax` (out_features * P / 64 / 256, rounded up) float32 and `nested_offset` (1,) float32.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: nn.Parameter | None, quant_type: str, *, nested: bool
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.quant_type, self.nested = quant_type, nested
        self.padding = -in_features % BLOCK_SIZE
        self.blocks = (in_features + self.padding) // BLOCK_SIZE  # per row
        self.weight = _empty(out_features, self.blocks * BLOCK_SIZE // 2, dtype=torch.uint8)
        self.absmax = _empty(out_features, self.blocks, dtype=torch.uint8 if nested else torch.float32)
        if nested:
            groups = -(-out_features * self.blocks // NESTED_BLOCK_SIZE)
            self.nested_absmax = _empty(groups, dtype=torch.float32)
            self.nested_offset = _empty(1, dtype=torch.float32)

    def product(self, x: Tensor) -> Tensor:
        return super().product(x) if x.device.type == "cpu" else self.fused_product(x)

    def fused_product(self, x: Tensor) -> Tensor:
        """Return `product`, by the kernel that bitsandbytes chooses for the GPU and the number of tokens."""
        from bitsandbytes import matmul_4bit  # pyright: ignore[reportPrivateImportUsage]

        nested: dict[str, Any] = {}
        if self.nested:
            nested = {"offset": self.nested_offset[0], "state2": _nested_state(self.nested_absmax)}
        state = self._state(self.absmax, x.dtype, **nested)
        return matmul_4bit(F.pad(x, (0, self.padding)), self.weight.view(1, -1), state)

    def _state(self, absmax: Tensor, dtype: torch.dtype, **nested: Any) -> Any:
        """Describe to bitsandbytes the codes whose scales are `absmax` (rows, blocks)."""
        from bitsandbytes.functional import QuantState

        return QuantState(
            absmax=absmax.contiguous().view(-1),  # reshape may keep a stride, which the kernels ignore
            shape=torch.Size((absmax.size(0), absmax.size(1) * BLOCK_SIZE)),
            blocksize=BLOCK_SIZE,
            quant_type=self.quant_type,
            dtype=dtype,
            **nested,
        )

    def _store(self, chunks: Iterator[Tensor]) -> None:
        from bitsandbytes import functional

        weights, scales = [], []
        for chunk in chunks:
            padded = F.pad(chunk, (0, self.padding))
            weight, state = functional.quantize_4bit(padded, blocksize=BLOCK_SIZE, quant_type=self.quant_type)
            weights.append(weight.view(chunk.size(0), -1))
            scales.append(state.absmax.view(chunk.size(0), -1))
        self.weight, absmax = _frozen(torch.cat(weights)), torch.cat(scales)
        if self.nested:
            absmax = self._whole(absmax)
            offset = absmax.mean()  # over the whole weight, so the scales are quantized after the last chunk
            absmax, state = functional.quantize_blockwise(
                absmax - offset, dynamic_code(absmax.device), blocksize=NESTED_BLOCK_SIZE
            )
            self.nested_absmax, self.nested_offset = _frozen(state.absmax), _frozen(offset.view(1))
            absmax = absmax[own_rows(self.out_features)].clone() if self.in_parts else absmax
        self.absmax = _frozen(absmax)

    def _chunks(self, dim: int, dtype: torch.dtype) -> Iterator[Tensor]:
        from bitsandbytes import functional

        weights, absmax = self._whole(self.weight), self._whole(self.absmax)
        if self.nested:
            absmax = functional.dequantize_blockwise(absmax, _nested_state(self.nested_absmax)) + self.nested_offset
        size, start = self._chunk_size(dim), 0
        per_byte, per_scale = (1, 1) if dim == 0 else (2, BLOCK_SIZE)
        for weight, scales in zip(weights.split(size // per_byte, dim), absmax.split(size // per_scale, dim), strict=True):
            chunk = functional.dequantize_4bit(weight.reshape(-1, 1), self._state(scales, dtype))
            yield chunk[:, : self.in_features - start]  # without the padding
            start += dim * chunk.size(1)


class LinearInt8(QuantizedLinear):
    """8 bits per weight and a scale per row, as the weights of LLM.int8() (https://arxiv.org/abs/2208.07339, section 2).

    `weight` (out_features, in_features) int8 represents `weight * absmax / 127`, with `absmax` (out_features,) float32.

    The input is not rounded. bitsandbytes' own product rounds it to 8 bits through float16 (on a CPU only in inference, so that
    a model would not run as it was trained), and in training keeps each input until backward, which activation checkpointing
    cannot free.
    """

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None) -> None:
        super().__init__(in_features, out_features, bias)
        self.weight = _empty(out_features, in_features, dtype=torch.int8)
        self.absmax = _empty(out_features, dtype=torch.float32)

    def _store(self, chunks: Iterator[Tensor]) -> None:
        from bitsandbytes import functional

        weights, scales = [], []
        for chunk in chunks:
            weight, absmax, _ = functional.int8_vectorwise_quant(chunk.half())  # the CUDA kernel takes float16 only
            weights.append(weight)
            scales.append(absmax)
        self.weight, self.absmax = _frozen(torch.cat(weights)), _frozen(torch.cat(scales))

    def _chunks(self, dim: int, dtype: torch.dtype) -> Iterator[Tensor]:
        size = self._chunk_size(dim)
        scales = (self.absmax / 127)[:, None].expand_as(self.weight)
        for weight, scale in zip(self.weight.split(size, dim), scales.split(size, dim), strict=True):
            # Rounded once either way; a CPU multiplies bfloat16 by float32 three times slower than it converts.
            wide = weight.to(torch.float32 if weight.device.type == "cpu" else dtype)
            yield wide.mul_(scale).to(dtype)


class _Product(torch.autograd.Function):
    """`x @ weight.T` that saves nothing for backward: autograd would save the dequantized weight, in full precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: QuantizedLinear) -> Tensor:
        ctx.linear = linear
        return linear.product(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.linear.product_backward(grad), None


def _join(parts: Iterable[Tensor], dim: int) -> Tensor:
    """`torch.cat`, but one part is not copied."""
    tensors = list(parts)
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _empty(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return _frozen(torch.empty(shape, dtype=dtype, device="meta"))


def _nested_state(absmax: Tensor) -> Any:
    """Describe to bitsandbytes quantized scales whose own scales are `absmax`."""
    from bitsandbytes.functional import QuantState

    code = dynamic_code(absmax.device)
    return QuantState(absmax=absmax, code=code, blocksize=NESTED_BLOCK_SIZE, dtype=torch.float32)


_DYNAMIC_CODES: dict[torch.device, Tensor] = {}  # a plain dict: torch.compile ignores functools.cache and traces the function


def four_bit_code(quant_type: str) -> Tensor:
    """Return the 16 values of `nf4` or `fp4`, on the CPU."""
    _import_bitsandbytes()
    from bitsandbytes.functional import get_4bit_type

    return get_4bit_type(quant_type, "cpu")


def dynamic_code(device: torch.device) -> Tensor:
    """Return the 256 values of the 8-bit dynamic data type (https://arxiv.org/abs/2110.02861, section 2.1)."""
    if device not in _DYNAMIC_CODES:
        from bitsandbytes.functional import create_dynamic_map

        _DYNAMIC_CODES[device] = create_dynamic_map().to(device)
    return _DYNAMIC_CODES[device]


def _import_bitsandbytes() -> None:
    """Import it first here, for a clear error and without its notice. Most runs do not need it."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_relevant)
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise OptionError("`quantize` needs bitsandbytes, which is not installed: pip install bitsandbytes") from error


def _is_relevant(record: logging.LogRecord) -> bool:
    """Return False for the notice of bitsandbytes about an optional bfloat16 kernel of another package, unused here."""
    return not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward")
