"""IA3 (https://arxiv.org/abs/2205.05638, section 3.3): learned scales of keys, values and the inner activations of the MLP."""

import torch
from torch import Tensor, nn

from lit_llm.methods.inject import find_linears, inject
from lit_llm.methods.method import Method
from lit_llm.model.gpt import GPT


class IA3(Method):
    """Scale the outputs of `k` and `v` and the input of `down`."""

    name = "ia3"

    def attach(self, model: GPT) -> None:
        for linear in find_linears(model, "k,v").values():
            inject(linear, "ia3", Scale(linear.out_features), lambda linear, inputs, output: linear.ia3(output))  # type: ignore[arg-type]
        for linear in find_linears(model, "down").values():
            inject(linear, "ia3", Scale(linear.in_features), lambda linear, inputs: linear.ia3(*inputs), on_input=True)  # type: ignore[arg-type]


class Scale(nn.Module):
    """scale * x over the last dimension (..., C); one, so that training starts from the unchanged model."""

    shown_as = "scales"

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features))  # float32 whatever the base is held in

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.to(x.dtype) * x
