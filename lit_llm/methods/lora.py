"""Low-rank adaptation (https://arxiv.org/abs/2106.09685): W x + s B A x, with A and B trained.

C_in, C_out features of a linear, r the rank.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lit_llm.args.finetune import MAX_RANK
from lit_llm.errors import OptionError
from lit_llm.methods.inject import eject, find_linears, hold_in_float32, inject, untie
from lit_llm.methods.method import Method
from lit_llm.model.gpt import GPT
from lit_llm.model.quantized_linear import QuantizedLinear

UNMERGED = (
    "Use the adapter unmerged (`adapter_dir`, without `merge`), or write it for PEFT: "
    "python scripts/convert_lit_checkpoint.py --checkpoint_dir BASE --adapter_dir ADAPTER --output_dir OUT"
)


class LoRA(Method):
    """Attach low-rank updates to the targeted linears; see `LoRAArgs` for the meaning of the arguments.

    Adapters that other programs trained may need more than those:

    Args:
        ranks, alphas: Rank and alpha of a linear, by its full name, where they differ from `r` and `alpha`.
        modules_to_save: Modules of the base whose own weights train in full, by full name, as in `lm_head`.
    """

    name = "lora"

    def __init__(
        self,
        r: int = 8,
        alpha: float = 16,
        dropout: float = 0.05,
        targets: str | list[str] = "q,v",
        use_rslora: bool = False,
        use_dora: bool = False,
        lr_ratio: float = 1.0,
        ranks: dict[str, int] | None = None,
        alphas: dict[str, float] | None = None,
        modules_to_save: list[str] | None = None,
    ) -> None:
        self.r, self.alpha, self.dropout, self.targets = r, alpha, dropout, targets
        self.use_rslora, self.use_dora, self.lr_ratio = use_rslora, use_dora, lr_ratio
        self.ranks, self.alphas, self.modules_to_save = ranks or {}, alphas or {}, modules_to_save or []
        if wrong := [f"{name}: {rank}" for name, rank in self.ranks.items() if not 0 < rank <= MAX_RANK]:
            raise OptionError(f"`ranks` must be above 0 and at most {MAX_RANK}, found {wrong[0]}")

    def attach(self, model: GPT) -> None:
        if self.modules_to_save:
            self._hold_modules(model)
        linears = find_linears(model, self.targets)
        if unknown := [name for name in (*self.ranks, *self.alphas) if name not in linears]:
            raise OptionError(f"`ranks` and `alphas` name {unknown[0]}, which `targets` does not adapt")
        for name, linear in linears.items():
            r = self.ranks.get(name, self.r)
            scale = self.alphas.get(name, self.alpha) / (math.sqrt(r) if self.use_rslora else r)
            update = Update(linear.in_features, linear.out_features, r, scale, self.dropout)  # type: ignore[arg-type]
            if self.use_dora:
                update.magnitude = nn.Parameter(base_weight(linear).norm(dim=1))
            inject(linear, "lora", update, apply_update)

    def _hold_modules(self, model: GPT) -> None:
        """Make the modules that train in full float32. A tied head or embedding becomes a weight of its own, as in PEFT."""
        for name in self.modules_to_save:
            module = dict(model.named_modules()).get(name)
            if module is None or not list(module.parameters(recurse=False)):
                raise OptionError(f"`modules_to_save` names {name}, which this model does not have")
            if isinstance(module, QuantizedLinear):
                raise OptionError(f"the adapter trains {name} in full, which `quantize` would round. Omit `quantize`")
        if model.config.tie_embeddings and {"wte", "lm_head"} & {*self.modules_to_save}:
            untie(model)
        self._held_as = {name: p.dtype for name, p in model.named_parameters(remove_duplicate=False) if self._is_saved(name)}
        hold_in_float32(model, self._is_saved)

    def _is_saved(self, name: str) -> bool:
        return name.rpartition(".")[0] in self.modules_to_save

    def trainable(self, name: str) -> bool:
        return super().trainable(name) or self._is_saved(name)

    def prepare_generation(self, model: GPT) -> None:
        for name in self.modules_to_save and self._held_as:
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.to(self._held_as[name])  # without autocast all have one dtype

    def lr_scale(self, name: str) -> float:
        """LoRA+ (https://arxiv.org/abs/2402.12354): B learns faster than A."""
        return self.lr_ratio if name.endswith(".lora.B") else 1.0

    def arguments(self) -> dict[str, Any]:
        names = ("r", "alpha", "dropout", "targets", "use_rslora", "use_dora", "lr_ratio")
        more = {name: value for name in ("ranks", "alphas", "modules_to_save") if (value := getattr(self, name))}
        return {name: getattr(self, name) for name in names} | more

    def warning(self, model: GPT) -> str | None:
        if not (model.config.tie_embeddings and hasattr(model.lm_head, "lora")):
            return None
        return (
            "the head of this model is tied to its embedding: an adapter on it works unmerged, here and in "
            "PEFT, but cannot be merged. To merge later, omit head from `lora.targets`"
        )


class Update(nn.Module):
    """scale * B A x for x (..., C_in), of shape (..., C_out).

    A and B are float32 whatever the base is held in: bfloat16 would lose small steps of the optimizer.
    """

    shown_as = "lora"

    def __init__(self, in_features: int, out_features: int, r: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(r, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, r))  # zero, so that training starts from the unchanged model
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.magnitude: nn.Parameter | None = None  # (C_out,), of DoRA
        self.dropout = dropout
        self.scale = scale
        self.on = True
        # Frozen copies of the three, which take their place while `on` is False; None: then there is no update.
        self.register_buffer("start_A", None, persistent=False)
        self.register_buffer("start_B", None, persistent=False)
        self.register_buffer("start_magnitude", None, persistent=False)

    def keep_start(self) -> None:
        """Make the present update that of `switched_off`."""
        self.start_A, self.start_B = self.A.detach().clone(), self.B.detach().clone()
        self.start_magnitude = None if self.magnitude is None else self.magnitude.detach().clone()

    @property
    def factors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """A, B and magnitude."""
        return (self.A, self.B, self.magnitude) if self.on else (self.start_A, self.start_B, self.start_magnitude)  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        A, B, _ = self.factors
        A = A.to(x.dtype)
        drops = self.training and self.dropout > 0 and self.on
        if drops and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            low = _DroppedLinear.apply(x, A, self.dropout)
        else:
            low = F.linear(F.dropout(x, self.dropout, drops), A)
        low = low * self.scale  # (..., r): scaling the output would cost more
        return F.linear(low, B.to(x.dtype))

    def delta(self) -> Tensor:
        """The update of the weight, (C_out, C_in), before DoRA's magnitude."""
        A, B, _ = self.factors
        return B @ A * self.scale

    def gain(self, weight: Tensor) -> Tensor:
        """Return DoRA's magnitude over the norm of the updated rows (https://arxiv.org/abs/2402.09353, eq. 5), (C_out,).

        A row of zeros stays zero: its direction is undefined, and its magnitude is 0.
        """
        magnitude = self.factors[2]
        assert magnitude is not None
        with torch.no_grad():  # the norm counts as a constant (section 4.3)
            norm = (weight + self.delta()).norm(dim=1)
        return magnitude / norm.where(norm > 0, 1)


class _DroppedLinear(torch.autograd.Function):
    """linear(dropout(x), weight), which keeps x, that others keep too, and a byte for each element of it; else each adapter
    holds its own dropped x and a factor for each element, eight times as much."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, p: float) -> Tensor:
        kept = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p)
        ctx.save_for_backward(x, weight, kept)
        ctx.share = 1 - p
        return F.linear(x * kept, weight) / ctx.share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight, kept = ctx.saved_tensors
        grad = grad_outputs[0].to(x.dtype) / ctx.share  # (..., r); autocast may have made it half
        grad_weight = grad.flatten(0, -2).T @ (x * kept).flatten(0, -2)
        return (grad @ weight * kept if ctx.needs_input_grad[0] else None), grad_weight, None


def apply_update(linear: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    update: Update = linear.lora  # type: ignore[assignment]
    if not update.on and update.start_A is None:
        return output
    if update.magnitude is None:
        return output + update(inputs[0])
    bias = 0 if linear.bias is None else linear.bias
    directed = output - bias + update(inputs[0])  # type: ignore[operator]
    return update.gain(base_weight(linear)).to(output.dtype) * directed + bias  # type: ignore[operator]


def base_weight(linear: nn.Module) -> Tensor:
    """The frozen weight (C_out, C_in) in float32, whatever it is held in."""
    if isinstance(linear, nn.Linear):
        return linear.weight.detach().float()
    return linear.dequantize()  # type: ignore[operator]


@contextmanager
def switched_off(model: GPT) -> Iterator[None]:
    """The model that training started from, for as long as this lasts: the base, or base and adapter as of `keep_start`."""
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
    """Put every update into the weight that it changes, and take the adapter off. The sum is made in float32.

    Raises:
        ValueError: if the weight is quantized, where the update would be rounded away, or tied to the embedding.
    """
    for name, linear in list(model.named_modules()):
        update = getattr(linear, "lora", None)
        if not isinstance(update, Update):
            continue
        if not isinstance(linear, nn.Linear):
            raise OptionError(f"{name} is quantized. Load the base without `quantize` to merge")
        if linear.weight is model.wte.weight:
            raise OptionError(
                "an adapter on the head cannot be merged into a model whose head is tied to its embedding, which would change "
                f"with it. {UNMERGED}"
            )
        merged = base_weight(linear) + update.delta()
        if update.magnitude is not None:
            merged *= update.gain(base_weight(linear))[:, None]
        # A new tensor: the old one may be a file on disk.
        linear.weight = nn.Parameter(merged.to(linear.weight.dtype), requires_grad=False)
        eject(linear, "lora")
