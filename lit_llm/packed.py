"""Weights laid out for decoding on a CPU, where a token takes as long as the weights take to come from memory.

Measured in `tutorials/benchmarks.md`, section "Decoding beside peers".
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lit_llm.model import GPT

KINDS = ("fp16", "int8")


def wide_linears(model: GPT) -> list[nn.Linear]:
    """The float32 linears on a CPU that have more outputs than inputs."""
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features > m.in_features]
    return [m for m in found if m.weight.device.type == "cpu" and m.weight.dtype == torch.float32]


@torch.no_grad()
def lay_out(model: GPT) -> None:
    """Hold wide float32 weights by columns: one row of input times them then reads memory faster.

    Shapes, values and the modules stay as they are; results differ by the rounding of float32. A weight is copied, one at a
    time, out of the file that it was mapped from.
    """
    for linear in wide_linears(model):
        linear.weight.data = linear.weight.data.t().contiguous().t()


@torch.no_grad()
def pack(model: GPT, kind: str) -> None:
    """Replace the linears, head included and routers excepted, by ones in 16 or 8 bits that multiply float32, for inference.

    `fp16` rounds the weights to float16. `int8` rounds them to 8 bits with a scale per row, and the input of each product to 7
    bits with a scale per token. Logits of a small trained model (stories260K) differ from those of float32 by up to 0.05 % and
    4.2 % of the largest one; its loss is 0.18037 and 0.18000 instead of 0.18036. A test holds both to twice that.

    Raises:
        ValueError: if the model is not in float32 on a CPU, is quantized, or has an adapter that changes its linears.
    """
    assert kind in KINDS
    weight = model.wte.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ValueError(f"--cpu_weights {kind} is for a CPU in 32-true, not for {weight.device.type} and {weight.dtype}")
    for name, linear in list(model.named_modules()):
        if hasattr(linear, "load_weight"):
            raise ValueError(f"--cpu_weights {kind} packs float32 weights: leave out --quantize")
        if not isinstance(linear, nn.Linear) or name.endswith("router"):
            continue
        if linear._forward_hooks:
            raise ValueError(
                f"--cpu_weights {kind} needs plain linears, but an adapter changes {name}. Add --merge if it is LoRA"
            )
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, PackedLinear(linear, kind))


class PackedLinear(nn.Module):
    """Computes what `linear` computes, with its weight in fewer bits, by the kernels of fbgemm."""

    def __init__(self, linear: nn.Linear, kind: str) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, self.bias, self.kind = linear.weight.detach(), linear.bias, kind
        self.packed: Any
        if kind == "fp16":
            self.packed = torch.ops.quantized.linear_prepack_fp16(weight, linear.bias)
        else:
            scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
            zero = torch.zeros(self.out_features, dtype=torch.long)
            with warnings.catch_warnings():  # torch 2.13 announces the end of quantized tensors, which fbgemm still needs
                warnings.simplefilter("ignore", UserWarning)
                rounded = torch.quantize_per_channel(weight.contiguous(), scale.double(), zero, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(rounded, None)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "fp16":
            return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)  # the kernel has one for all rows
        y = torch.ops.quantized.linear_dynamic(x / scale, self.packed, True) * scale  # 7 bits: 8 overflow without VNNI
        return y if self.bias is None else y + self.bias
