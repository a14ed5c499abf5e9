"""LLaMA-Adapter V2 (https://arxiv.org/abs/2304.15010): prompts as in the first, every norm trained, and a scale and a bias for
each output of every linear."""

import torch
from torch import Tensor, nn

from lit_llm.methods.adapter import Adapter
from lit_llm.methods.inject import inject
from lit_llm.model.gpt import GPT
from lit_llm.model.norms import Norm


class AdapterV2(Adapter):
    """An `Adapter`, since it has the same prompts and arguments, that trains more."""

    name = "adapter_v2"

    def attach(self, model: GPT) -> None:
        super().attach(model)
        for name, linear in list(model.named_modules()):
            if hasattr(linear, "in_features") and not name.endswith("router"):
                inject(linear, "affine", Affine(linear.out_features), apply_affine)  # type: ignore[arg-type]
            elif isinstance(linear, Norm):
                linear.float()  # they train: no small update may be lost
        self._norms = {f"{name}." for name, module in model.named_modules() if isinstance(module, Norm)}

    def trainable(self, name: str) -> bool:
        return super().trainable(name) or ".affine." in name or f"{name.rpartition('.')[0]}." in self._norms


class Affine(nn.Module):
    """scale * (x + bias) over the last dimension; starts as the identity."""

    shown_as = "scales and biases"

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.to(x.dtype) * (x + self.bias.to(x.dtype))


def apply_affine(linear: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return linear.affine(output)  # type: ignore[operator]
