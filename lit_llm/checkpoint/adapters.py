"""Adapter folders: the trained parameters of a method, its arguments, and the base that they belong to."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lit_llm.checkpoint.read import check_finite, empty_model
from lit_llm.checkpoint.write import save_safetensors, write_checkpoint
from lit_llm.devices.fsdp import reshard, whole
from lit_llm.errors import CheckpointError, OptionError, brief
from lit_llm.files import read_json_object, write_json
from lit_llm.methods.method import Method
from lit_llm.methods.registry import adapter_types, check_arguments
from lit_llm.model.gpt import GPT
from lit_llm.schema import conform, shown
from lit_llm.text.conversation import CHAT_TEMPLATE
from lit_llm.text.styles import STYLES

if TYPE_CHECKING:
    StyleName = str
else:
    StyleName = Literal[(CHAT_TEMPLATE, *STYLES)]


def write_adapter(folder: Path | None, model: GPT, method: Method, checkpoint_dir: Path, prompt_style: str | None) -> None:
    """Write `adapter.safetensors` and `adapter.json` into an existing folder.

    A rank without a folder only helps to gather parameters that ranks hold in parts.
    """
    reshard(model)
    tensors = {name: whole(p.detach()) for name, p in model.named_parameters() if method.trainable(name)}
    if folder is None:
        return
    save_safetensors(tensors, folder / "adapter.safetensors")
    about = {"method": method.name, "arguments": method.arguments()}
    write_json(folder / "adapter.json", about | _about_base(model, checkpoint_dir, prompt_style))


def write_finetuned(folder: Path | None, model: GPT, method: Method, checkpoint_dir: Path, prompt_style: str | None) -> None:
    """Write a fully finetuned model, in the dtypes of its base, and `finetuned.json` into an existing folder.

    A rank without a folder only helps to gather weights that ranks hold in parts.
    """
    reshard(model)
    write_checkpoint(folder, model, checkpoint_dir)
    if folder is not None:
        about = {"method": method.name, "arguments": method.arguments()}
        write_json(folder / "finetuned.json", about | _about_base(model, checkpoint_dir, prompt_style))


def _about_base(model: GPT, checkpoint_dir: Path, prompt_style: str | None) -> dict[str, Any]:
    return {
        "base_checkpoint_dir": str(checkpoint_dir.resolve()),
        "base_fingerprint": model.fingerprint,
        "prompt_style": prompt_style,
        "versions": {name: version(name) for name in ("torch", "lightning")},
    }


def write_merged(folder: Path, model: GPT, checkpoint_dir: Path, adapters: Sequence[Path], weights: Sequence[float]) -> str:
    """Write `finetuned.json` for a merged checkpoint, and return the prompt style of the adapters.

    If they have several, the first one's is used, with a warning.
    """
    abouts = [read_adapter(adapter) for adapter in adapters]
    styles = list(dict.fromkeys(str(about["prompt_style"]) for about in abouts))
    if len(styles) > 1:
        print(
            f"warning: the adapters were trained in several prompt styles ({', '.join(styles)}): the merged model is asked in "
            f"{styles[0]}, that of the first one. --prompt_style of generate/chat.py and generate/serve.py chooses another",
            file=sys.stderr,
        )
    merged = zip(adapters, weights, abouts, strict=True)
    about = {
        "method": "lora",
        "merged": [{"adapter_dir": str(a.resolve()), "weight": w, "arguments": about["arguments"]} for a, w, about in merged],
    }
    write_json(folder / "finetuned.json", about | _about_base(model, checkpoint_dir, abouts[0]["prompt_style"]))
    return styles[0]


class Finetuned(TypedDict):
    """Contents of `finetuned.json` that are read."""

    prompt_style: StyleName | None


class AdapterAbout(Finetuned):
    """Contents of `adapter.json` that are read."""

    method: str
    arguments: dict[str, Any]
    base_checkpoint_dir: str
    base_fingerprint: str


_AGAIN = "Train the adapter again"


def read_adapter(folder: Path) -> AdapterAbout:
    """Return the contents of `adapter.json`, with all arguments of the method.

    Raises:
        FileNotFoundError: if `folder` is not an adapter folder.
        CheckpointError: if the file is damaged.
    """
    path = folder / "adapter.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no adapter. Train one: python finetune/lora.py --out_dir {folder.parent}")
    about = read_json_object(path, AdapterAbout, _AGAIN)
    if about["method"] not in (known := adapter_types()):
        raise CheckpointError(
            f"{path}: method {shown(about['method'])} is not known; known: {', '.join(known)}. "
            "Use an adapter that this version has trained"
        )
    return {**about, "arguments": _method(path, about).arguments()}


def _method(path: Path, about: AdapterAbout) -> Method:
    """Build the method of an `adapter.json`."""
    kind = adapter_types()[about["method"]]
    arguments = conform(about["arguments"], kind, f"{path}: arguments", _AGAIN)
    with _naming(path):
        check_arguments(about["method"], arguments)
        return kind(**arguments)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn mistakes in arguments into those of the file that holds them."""
    try:
        yield
    except OptionError as error:
        raise CheckpointError(f"{path}: arguments: {error}. {_AGAIN}") from error


def trained_style(folder: Path) -> str | None:
    """Return the prompt style that an adapter or a checkpoint was finetuned with; None for a plain checkpoint."""
    if (folder / "adapter.json").is_file():
        return read_adapter(folder)["prompt_style"]
    path = folder / "finetuned.json"
    return read_json_object(path, Finetuned, "Finetune or merge again")["prompt_style"] if path.is_file() else None


def attach_adapter(model: GPT, folder: Path) -> None:
    """Attach a saved adapter to the model that it was trained on.

    Raises:
        CheckpointError: if it was trained on another base, or its tensors are not exactly those of its method.
    """
    about = read_adapter(folder)
    if about["base_fingerprint"] != model.fingerprint:
        raise CheckpointError(
            f"the adapter in {folder} was trained on another base ({about['base_checkpoint_dir']}). "
            "Use that one as `checkpoint_dir`"
        )
    method, blank = _method(folder / "adapter.json", about), empty_model(model.config)
    with _naming(folder / "adapter.json"), torch.device("meta"):
        method.attach(blank)  # without memory, until the file is known to hold all these tensors
    shapes = {name: list(p.shape) for name, p in blank.named_parameters() if method.trainable(name)}
    tensors = _read_parameters(folder / "adapter.safetensors", shapes)
    method.attach(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
            parameters[name].requires_grad_(False)
    method.prepare_generation(model)


def _read_parameters(path: Path, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Read the tensors of an adapter. Raises CheckpointError unless they are exactly those in `shapes`."""
    try:
        tensors = load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise CheckpointError(f"{path} is missing or damaged ({brief(error)}). {_AGAIN}") from error
    for name, tensor in tensors.items():
        check_finite(tensor, f"{path}: tensor {name}")
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(found.keys() | shapes.keys()):
        if found.get(name) != shapes.get(name):
            difference = f"tensor {shown(name)} is {found.get(name, 'missing')}, expected {shapes.get(name, 'none')}"
            raise CheckpointError(f"{path} does not fit adapter.json: {difference}. {_AGAIN}")
        if not tensors[name].is_floating_point():
            raise CheckpointError(f"{path}: tensor {name} has dtype {tensors[name].dtype}, expected torch.float32. {_AGAIN}")
    return tensors
