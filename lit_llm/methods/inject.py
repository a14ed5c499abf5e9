"""Put trainable parameters next to the linears of a model, and keep the names of its own weights.

A method's module becomes a child of the linear that it changes, and a forward hook adds its effect: the base weight keeps
its name, plain and quantized linears are treated alike, and taking the adapter off leaves the model as it was.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lit_llm.errors import OptionError
from lit_llm.methods.method import Method
from lit_llm.model.gpt import GPT
from lit_llm.schema import shown

GROUPS = {
    "attn": ("q", "k", "v", "o", "q_down", "q_up", "kv_down", "kv_up", "o_gate", "in_proj", "rate", "decay"),
    "mlp": ("gate", "up", "down"),
}
"""`attn` also means the parts that layers have in place of attention."""
GROUPS["all-linear"] = GROUPS["attn"] + GROUPS["mlp"]
OF_LATENTS = {"q": ("q_up",), "k": ("kv_up",), "v": ("kv_up",)}
"""Linears of latent attention whose outputs are those that a target names."""


def find_linears(model: GPT, targets: str | list[str]) -> dict[str, nn.Module]:
    """Return the linears that `targets` name, by name. Targets are groups, names in all layers, or full names as `h.0.attn.q`,
    separated by commas or in a list. With latent attention q means q_up, and k or v means kv_up.

    Raises:
        ValueError: for a target that matches nothing; the message lists what exists.
    """
    linears = {name: module for name, module in model.named_modules() if hasattr(module, "in_features")}
    short, wanted = short_names(model), set[str]()
    for target in as_list(targets):
        names = GROUPS.get(target, (target, *OF_LATENTS.get(target, ())))
        found = {target} & short.keys() or {name for name in short if short[name] in names}
        if not found:
            exist, groups = ", ".join(dict.fromkeys(short.values())), ", ".join(GROUPS)
            raise OptionError(f"target {shown(target)} matches no linear of this model; it has {exist}; groups: {groups}")
        wanted |= found
    return {name: linears[name] for name in linears if name in wanted}


def as_list(targets: str | list[str]) -> list[str]:
    """Return targets one by one."""
    return [target.strip() for target in (targets if isinstance(targets, list) else targets.strip("[]").split(","))]


def short_names(model: GPT) -> dict[str, str]:
    """Return the name that a linear has in all layers, for the full name of each. Routers have none."""
    linears = [name for name, module in model.named_modules() if hasattr(module, "in_features")]
    last = {name: name.rpartition(".")[2] for name in linears}
    return {name: "head" if name == "lm_head" else last[name] for name in linears if not name.endswith("router")}


def hold_in_float32(model: GPT, trains: Callable[[str], bool]) -> None:
    """Replace the weights whose names `trains` accepts by copies in float32, whatever the others are held in.

    bfloat16 has 8 bits of precision, so that an update below 1/256 of a weight would be lost. A tied head stays tied if
    `trains` accepts the embedding.
    """
    for name, module in model.named_modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            if trains(f"{name}.{leaf}".lstrip(".")):
                setattr(module, leaf, nn.Parameter(parameter.detach().to(torch.float32, copy=True)))
    if model.config.tie_embeddings:
        model.lm_head.weight = model.wte.weight


def untie(model: GPT) -> None:
    """Make the head a weight of its own, equal to that of the embedding."""
    model.config = replace(model.config, tie_embeddings=False)
    model.lm_head.weight = nn.Parameter(model.wte.weight.detach(), requires_grad=False)


def inject(linear: nn.Module, name: str, module: nn.Module, hook: Callable[..., Any], on_input: bool = False) -> None:
    """Make `module` the child `name` of `linear`, on its device.

    Args:
        hook: `hook(linear, inputs, output)` returns the new output of `linear`; with `on_input`, `hook(linear, inputs)` its new
            input.
    """
    linear.add_module(name, module.to(next(linear.parameters()).device))
    module.hook = (linear.register_forward_pre_hook if on_input else linear.register_forward_hook)(hook)  # type: ignore[assignment]


def eject(linear: nn.Module, name: str) -> None:
    """Undo `inject`."""
    getattr(linear, name).hook.remove()
    delattr(linear, name)


def freeze(model: GPT, method: Method) -> list[nn.Parameter]:
    """Set `requires_grad` as the method says, and return what trains.

    Raises:
        ValueError: if nothing does.
    """
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(method.trainable(name))
        if parameter.requires_grad:
            trained.append(parameter)
    if not trained:
        raise OptionError(f"{method.name} would train no parameter of this model")
    return trained
