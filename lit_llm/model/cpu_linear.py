"""Linears laid out for decoding on a CPU, where a token takes as long as reading the weights from memory.

Measured in `tutorials/benchmarks.md`, section "Decoding next to peers".
"""

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_llm.errors import OptionError
from lit_llm.model.gpt import GPT

SmallLayout = Literal["fp16", "int8"]
Layout = Literal["columns", "fp16", "int8"]
"""Layout of the linears of a float32 model on a CPU, for inference.

`columns` stores weights by columns where that is read faster; results differ by the rounding of float32. `fp16` rounds weights
to float16. `int8` rounds them to 8 bits with a scale per row, and the input of each product to 7 bits with a scale per token.
Logits of a small trained model (stories260K) then differ by up to 0.05 % and 4.2 % of the largest one; its loss is 0.18037 and
0.18000 instead of 0.18036. A test limits both to twice that.
"""


def check_layout(layout: Layout, device: torch.device, dtype: torch.dtype | None, quantized: bool) -> None:
    """Raise OptionError unless the linears of such a model can be laid out."""
    if device.type != "cpu" or dtype != torch.float32:
        raise OptionError(f"`cpu_weights` {layout} is for a CPU in 32-true, not for {device.type} and {dtype}")
    if quantized and layout != "columns":
        raise OptionError(f"`cpu_weights` {layout} needs float32 weights. Omit `quantize`")


@torch.no_grad()
def lay_out(model: GPT, layout: Layout) -> None:
    """Lay out the linears of a model, head included, one by one. `load_model` does so while loading, in less memory.

    Raises:
        OptionError: as `check_layout`, and if an adapter changes linears that are to be rounded.
    """
    check_layout(layout, model.device, model.wte.weight.dtype, any(hasattr(m, "load_weight") for m in model.modules()))
    for name, linear in linears(model).items():
        if layout == "columns":
            linear.weight.data = by_columns(linear.weight.data)
            continue
        if linear._forward_hooks:
            raise OptionError(
                f"`cpu_weights` {layout} needs plain linears, but an adapter changes {name}. Add `merge` if it is LoRA"
            )
        replace(model, name, layout).load_weight(linear.weight)


def linears(model: GPT) -> dict[str, nn.Linear]:
    """Return the linears that are laid out: all except routers."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and not name.endswith("router")}


def by_columns(weight: Tensor) -> Tensor:
    """Store a weight (C_out, C_in) by columns if it has more outputs than inputs: a product with one row reads it faster."""
    return weight.t().contiguous().t() if weight.size(0) > weight.size(1) else weight


def replace(model: GPT, name: str, layout: SmallLayout) -> "LaidOutLinear":
    """Replace the linear of this name by an empty laid-out one with the same bias."""
    linear = model.get_submodule(name)
    new = LaidOutLinear(linear.in_features, linear.out_features, linear.bias, layout)  # type: ignore[arg-type]
    model.set_submodule(name, new)
    return new


class LaidOutLinear(nn.Module):
    """Product of float32 with a weight in fewer bits, by the kernels of fbgemm. Empty until `load_weight`.

    fp16: y = x w^T with w in float16. int8: y = s_x (q_x q_w^T) s_w, with q_w = round(w / s_w) for each row of w, and
    q_x = round(x / s_x) for each token.
    """

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None, layout: SmallLayout) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias, self.layout = in_features, out_features, bias, layout
        self.laid_out: Any = None  # the weight, in the format of the kernel

    def load_weight(self, weight: Tensor, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> None:
        """Lay out a weight (out_features, in_features) of any floating dtype. `device` and `dtype` cannot be chosen here."""
        weight = weight.detach()
        if self.layout == "fp16":
            self.laid_out = torch.ops.quantized.linear_prepack_fp16(weight.float(), None)
            return
        largest = torch.maximum(weight.amax(dim=1), -weight.amin(dim=1)).float()  # abs() would copy the weight
        scale = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
        zero = torch.zeros(self.out_features, dtype=torch.long)
        with warnings.catch_warnings():  # torch 2.13 announces the end of quantized tensors, which fbgemm still needs
            warnings.simplefilter("ignore", UserWarning)
            rounded = torch.quantize_per_channel(weight.float().contiguous(), scale.double(), zero, 0, torch.qint8)
        self.laid_out = torch.ops.quantized.linear_prepack(rounded, None)

    def forward(self, x: Tensor) -> Tensor:
        if self.layout == "fp16":
            y = torch.ops.quantized.linear_dynamic_fp16(x, self.laid_out)
        else:
            # The kernel has one scale for all tokens: divide each by its own. 7 bits, since 8 overflow without VNNI.
            scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            y = torch.ops.quantized.linear_dynamic(x / scale, self.laid_out, True) * scale
        return y if self.bias is None else y + self.bias
