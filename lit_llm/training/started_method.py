"""The method of a run: from its options, and from the adapter that it starts from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_llm.args.base import Checked
from lit_llm.args.finetune import FinetuneArgs
from lit_llm.checkpoint.adapters import Adapter
from lit_llm.checkpoint.upstream_linears import with_our_targets
from lit_llm.errors import OptionError
from lit_llm.methods.inject import find_linears
from lit_llm.methods.method import Method
from lit_llm.methods.registry import build_method, method_type
from lit_llm.model.gpt import GPT

# Options of a method that do not change its parameters: a run may have its own.
_FREE = ("dropout", "lr_ratio", "beta")


def method_of(args: FinetuneArgs, empty: GPT, start: Adapter | None) -> tuple[FinetuneArgs, Method]:
    """Return the method that `args` describe, and `args` with what it takes from the adapter `start`.

    Args:
        empty: The model on the meta device.

    Raises:
        OptionError: if the adapter is of another method, or an option contradicts it.
    """
    args = with_our_targets(args, empty)
    if start is None:
        return args, build_method(args)
    folder, name, needed = start.folder, start.about["method"], method_type(args.method).name
    if name != needed:
        raise OptionError(f"`init_from` {folder} is an adapter of {name}. Use finetune/{name}.py, or one of {needed}")
    kept = dict(start.method.arguments())
    for group, options in vars(args).items():
        if isinstance(options, Checked) and group not in ("train", "eval"):
            own = {key: kept.pop(key) for key in vars(options) if key in kept}
            args = _with_group(args, group, _continued(folder, empty, group, options, own))
    method = build_method(args, **kept)
    method.init_from = str(folder.resolve())
    return args, method


def _continued(folder: Path, empty: GPT, group: str, options: Checked, adapter: dict[str, Any]) -> Checked:
    """Return a group of options with the values of the adapter. Only free ones may differ from them."""
    values = {}
    for name, value in adapter.items():
        given = getattr(options, name)
        if not options.changed(name):
            values[name] = value
        elif name not in _FREE and not _equal(empty, name, given, value):
            raise OptionError(
                f"`{group}.{name}` {given} contradicts the adapter in {folder}, which has {value}. Omit it: a run with "
                "`init_from` keeps what the adapter has"
            )
    return replace(options, **values)


def _equal(empty: GPT, name: str, given: Any, value: Any) -> bool:
    if name == "targets":
        return find_linears(empty, given).keys() == find_linears(empty, value).keys()
    return given == value


def _with_group(args: FinetuneArgs, group: str, options: Checked) -> FinetuneArgs:
    return replace(args, **{group: options})  # type: ignore[arg-type]
