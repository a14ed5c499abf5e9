"""Weights laid out for decoding on a CPU, where a token takes as long as the weights take to come from memory.

Measured in `tutorials/benchmarks.md`, section "Decoding beside peers".
"""

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_llm.model.gpt import GPT

Layout = Literal["columns", "fp16", "int8"]
"""Of the linears of a float32 model on a CPU, for inference.

`columns` holds weights by columns where that is read faster; results differ by the rounding of float32. `fp16` rounds weights
to float16. `int8` rounds them to 8 bits with a scale per row, and the input of each product to 7 bits with a scale per token.
Logits of a small trained model (stories260K) then differ by up to 0.05 % and 4.2 % of the largest one; its loss is 0.18037 and
0.18000 instead of 0.18036. A test holds both to twice that.
"""


def check_layout(layout: Layout, device: torch.device, dtype: torch.dtype | None, quantized: bool) -> None:
    """Raises ValueError unless the linears of such a model can be laid out."""
    if device.type != "cpu" or dtype != torch.float32:
        raise ValueError(f"--cpu_weights {layout} is for a CPU in 32-true, not for {device.type} and {dtype}")
    if quantized and layout != "columns":
        raise ValueError(f"--cpu_weights {layout} packs float32 weights: leave out --quantize")


@torch.no_grad()
def lay_out(model: GPT, layout: Layout) -> None:
    """Lay out the linears of a model, head included, one by one. `load_model` does it while it loads, in less memory.

    Raises:
        ValueError: as `check_layout`, and if linears are to be packed that an adapter changes.
    """
    check_layout(layout, model.device, model.wte.weight.dtype, any(hasattr(m, "load_weight") for m in model.modules()))
    for name, linear in linears(model).items():
        if layout == "columns":
            linear.weight.data = by_columns(linear.weight.data)
            continue
        if linear._forward_hooks:
            raise ValueError(
                f"--cpu_weights {layout} needs plain linears, but an adapter changes {name}. Add --merge if it is LoRA"
            )
        replace(model, name, layout).load_weight(linear.weight)


def linears(model: GPT) -> dict[str, nn.Linear]:
    """Those that are laid out: all but routers."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and not name.endswith("router")}


def by_columns(weight: Tensor) -> Tensor:
    """A weight (C_out, C_in) with more outputs than inputs held by columns: one row of input times it reads memory faster."""
    return weight.t().contiguous().t() if weight.size(0) > weight.size(1) else weight


def replace(model: GPT, name: str, kind: Literal["fp16", "int8"]) -> "PackedLinear":
    """Put an empty packed linear in the place of the linear of this name, with its bias."""
    linear = model.get_submodule(name)
    packed = PackedLinear(linear.in_features, linear.out_features, linear.bias, kind)  # type: ignore[arg-type]
    model.set_submodule(name, packed)
    return packed


class PackedLinear(nn.Module):
    """Multiplies float32 by a weight in fewer bits, by the kernels of fbgemm. It is empty until `load_weight`."""

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None, kind: Literal["fp16", "int8"]) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias, self.kind = in_features, out_features, bias, kind
        self.packed: Any = None

    def load_weight(self, weight: Tensor, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> None:
        """Pack a weight (out_features, in_features) of any floating dtype; device and dtype of the products are given."""
        weight = weight.detach()
        if self.kind == "fp16":
            self.packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), None)
            return
        largest = torch.maximum(weight.amax(dim=1), -weight.amin(dim=1)).float()  # abs() would be a copy of the weight
        scale = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
        zero = torch.zeros(self.out_features, dtype=torch.long)
        with warnings.catch_warnings():  # torch 2.13 announces the end of quantized tensors, which fbgemm still needs
            warnings.simplefilter("ignore", UserWarning)
            rounded = torch.quantize_per_channel(weight.float().contiguous(), scale.double(), zero, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(rounded, None)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "fp16":
            y = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        else:
            scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)  # the kernel has one for all
            y = torch.ops.quantized.linear_dynamic(x / scale, self.packed, True) * scale  # 7 bits: 8 overflow without VNNI
        return y if self.bias is None else y + self.bias
