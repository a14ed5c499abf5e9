"""Methods by name: each name of `args.finetune.METHODS` is that of a module here, which defines one `Method`."""

from dataclasses import replace
from importlib import import_module
from typing import Any

from lit_llm.args.base import Checked
from lit_llm.args.finetune import METHODS, FinetuneArgs
from lit_llm.args.measure import EstimateArgs
from lit_llm.methods.method import Method


def method_type(name: str) -> type[Method]:
    module = import_module(f"lit_llm.methods.{name}")
    kinds = (kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Method))
    return next(kind for kind in kinds if kind.__module__ == module.__name__)


def adapter_types() -> dict[str, type[Method]]:
    """Methods that write an adapter folder of their own, by the name in `adapter.json`."""
    kinds = {name: method_type(name) for name in METHODS}
    return {name: kind for name, kind in kinds.items() if kind.name == name and not kind.trains_base}


def _groups(name: str) -> dict[str, Checked]:
    """Return the groups of options that become arguments of a method, with their defaults."""
    options = vars(METHODS[name]())
    return {group: value for group, value in options.items() if isinstance(value, Checked) and group not in ("train", "eval")}


def build_method(args: FinetuneArgs | EstimateArgs, **more: Any) -> Method:
    """Build the method that `args` name from its groups of options and `more`; defaults where `args` lack a group."""
    options: dict[str, Any] = dict(more)
    for group, default in _groups(args.method).items():
        options |= vars(getattr(args, group, default))
    return method_type(args.method)(**options)


def check_arguments(name: str, arguments: dict[str, Any]) -> None:
    """Raise OptionError for arguments of a method that its options do not allow."""
    for group in _groups(name).values():
        replace(group, **{key: value for key, value in arguments.items() if hasattr(group, key)})
