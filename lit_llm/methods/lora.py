"""Low-rank adaptation (https://arxiv.org/abs/2106.09685): W x + alpha / r * B A x, with A and B trained."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.methods.inject import eject, find_linears, inject
from lit_llm.model import GPT


class LoRA:
    """Attach low-rank updates to the targeted linears; see `LoRAArgs` for the meaning of the arguments."""

    name = "lora"

    def __init__(self, r: int = 8, alpha: float = 16, dropout: float = 0.05, targets: str | list[str] = "q,v") -> None:
        self.r, self.alpha, self.dropout, self.targets = r, alpha, dropout, targets

    def attach(self, model: GPT) -> None:
        for linear in find_linears(model, self.targets).values():
            update = Update(linear.in_features, linear.out_features, self.r, self.alpha, self.dropout)  # type: ignore[arg-type]
            inject(linear, "lora", update.to(model.wte.weight.device), add_update)

    def trainable(self, name: str) -> bool:
        return ".lora." in name

    def arguments(self) -> dict[str, Any]:
        return {"r": self.r, "alpha": self.alpha, "dropout": self.dropout, "targets": self.targets}


class Update(nn.Module):
    """alpha / r * B A x for x (..., in_features), of shape (..., out_features).

    A and B are float32 whatever the base is held in: bfloat16 would lose small steps of the optimizer.
    """

    def __init__(self, in_features: int, out_features: int, r: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(r, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, r))  # zero, so that training starts from the unchanged model
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout)
        self.scale = alpha / r
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(self.dropout(x), self.A.to(x.dtype)) * self.scale  # (..., r): scaling the output would cost more
        return F.linear(low, self.B.to(x.dtype))

    def delta(self) -> Tensor:
        """The update of the weight, (out_features, in_features)."""
        return self.B @ self.A * self.scale


def add_update(linear: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output + linear.lora(inputs[0]) if linear.lora.on else output  # type: ignore[operator]


@contextmanager
def switched_off(model: GPT) -> Iterator[None]:
    """The base model, for as long as this lasts."""
    updates = [module for module in model.modules() if isinstance(module, Update)]
    for update in updates:
        update.on = False
    try:
        yield
    finally:
        for update in updates:
            update.on = True


@torch.no_grad()
def merge(model: GPT) -> None:
    """Add every update to the weight that it changes, and take the adapter off. The sum is made in float32.

    Raises:
        ValueError: if the weight is quantized: merging there would round the update away.
    """
    for name, linear in list(model.named_modules()):
        if not hasattr(linear, "lora"):
            continue
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"{name} is quantized; load the base without --quantize to merge")
        merged = (linear.weight.float() + linear.lora.delta()).to(linear.weight.dtype)  # type: ignore[operator]
        linear.weight = nn.Parameter(merged, requires_grad=False)  # a new tensor: the old one may be a file on disk
        eject(linear, "lora")
    if model.config.tie_embeddings and model.lm_head.weight is not model.wte.weight:
        raise ValueError("an adapter on the head of a model with tied embeddings cannot be merged")
