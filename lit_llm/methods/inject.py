"""Put trainable parameters next to the linears of a model, and keep the names of its own weights.

A method's module becomes a child of the linear that it changes, and a forward hook adds its effect: the base weight keeps
its name, plain and quantized linears are treated alike, and taking the adapter off leaves the model as it was.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from lit_llm.errors import OptionError
from lit_llm.methods.method import Method
from lit_llm.model.gpt import GPT

GROUPS = {"attn": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}
GROUPS["all-linear"] = GROUPS["attn"] + GROUPS["mlp"]


def find_linears(model: GPT, targets: str | list[str]) -> dict[str, nn.Module]:
    """Return the linears that `targets` name, by name. Targets are names or groups, separated by commas or in a list.

    Raises:
        ValueError: for a target that matches nothing; the message lists what exists.
    """
    linears = {
        name: module for name, module in model.named_modules() if hasattr(module, "in_features") and not name.endswith("router")
    }
    short = {name: "head" if name == "lm_head" else name.rpartition(".")[2] for name in linears}
    wanted: set[str] = set()
    asked = targets if isinstance(targets, list) else targets.strip("[]").split(",")
    for target in (t.strip() for t in asked):
        names = set(GROUPS.get(target, (target,))) & set(short.values())
        if not names:
            exist = ", ".join(dict.fromkeys(short.values()))
            raise OptionError(f"target {target!r} matches no linear of this model; it has {exist}; groups: {', '.join(GROUPS)}")
        wanted |= names
    return {name: linears[name] for name in linears if short[name] in wanted}


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
