"""Adapter folders: the trained parameters of a method, its arguments, and which base they belong to."""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lit_llm.checkpoint.write import save_safetensors, write_checkpoint
from lit_llm.devices.fsdp import reshard, whole
from lit_llm.files import read_json_object, write_json
from lit_llm.methods.method import Method
from lit_llm.methods.registry import adapter_types
from lit_llm.model.gpt import GPT


def write_adapter(folder: Path | None, model: GPT, method: Method, checkpoint_dir: Path, prompt_style: str | None) -> None:
    """Write `adapter.safetensors` and `adapter.json` into an existing folder; without one, help the rank that does."""
    reshard(model)
    tensors = {name: whole(p.detach()) for name, p in model.named_parameters() if method.trainable(name)}
    if folder is None:
        return
    save_safetensors(tensors, folder / "adapter.safetensors")
    write_json(folder / "adapter.json", _describe(model, method, checkpoint_dir, prompt_style))


def _describe(model: GPT, method: Method, checkpoint_dir: Path, prompt_style: str | None) -> dict[str, Any]:
    about = {"method": method.name, "arguments": method.arguments()}
    return {**about, **_describe_base(model, checkpoint_dir, prompt_style)}


def _describe_base(model: GPT, checkpoint_dir: Path, prompt_style: str | None) -> dict[str, Any]:
    return {
        "base_checkpoint_dir": str(checkpoint_dir.resolve()),
        "base_fingerprint": model.fingerprint,
        "prompt_style": prompt_style,
        "versions": {name: version(name) for name in ("torch", "lightning")},
    }


def write_finetuned(
    folder: Path | None, model: GPT, method: Method, checkpoint_dir: Path, prompt_style: str | None, dtype: torch.dtype | None
) -> None:
    """Write a fully finetuned model as a checkpoint into an existing folder, with `finetuned.json` beside it; without a
    folder, help the rank that does.

    Args:
        dtype: To write the weights in; None: as they are held.
    """
    reshard(model)
    write_checkpoint(folder, model, checkpoint_dir, dtype)
    if folder is None:
        return
    write_json(folder / "finetuned.json", _describe(model, method, checkpoint_dir, prompt_style))


def write_merged(folder: Path, model: GPT, checkpoint_dir: Path, adapters: Sequence[Path], weights: Sequence[float]) -> str:
    """Write `finetuned.json` beside a merged checkpoint, and return the prompt style: that of the adapters.

    Where they have several, it is the first one's, and a warning says so.
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
        **_describe_base(model, checkpoint_dir, abouts[0]["prompt_style"]),
    }
    write_json(folder / "finetuned.json", about)
    return styles[0]


def read_adapter(folder: Path) -> dict[str, Any]:
    """Contents of `adapter.json`. Raises FileNotFoundError if `folder` is no adapter folder, ValueError if it is damaged."""
    if not (folder / "adapter.json").is_file():
        raise FileNotFoundError(f"{folder} holds no adapter. Train one: python finetune/lora.py --out_dir {folder.parent}")
    about = read_json_object(folder / "adapter.json")
    if about.get("method") not in (known := adapter_types()):
        raise ValueError(f"{folder}/adapter.json: method {about.get('method')!r} is not known; known: {', '.join(known)}")
    return about


def trained_style(folder: Path) -> str | None:
    """The prompt style that the model of a folder, adapter or checkpoint, was finetuned with; None for a plain one."""
    if (folder / "adapter.json").is_file():
        return read_adapter(folder)["prompt_style"]
    finetuned = folder / "finetuned.json"
    return read_json_object(finetuned)["prompt_style"] if finetuned.is_file() else None


def attach_adapter(model: GPT, folder: Path) -> None:
    """Attach a saved adapter to the model it was trained on.

    Raises:
        ValueError: if it was trained on another base, or its tensors are not exactly those of its method.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    about = read_adapter(folder)
    if about.get("base_fingerprint") != model.fingerprint:
        raise ValueError(
            f"the adapter in {folder} was trained on another base ({about.get('base_checkpoint_dir')}). "
            "Give that one as --checkpoint_dir"
        )
    method = adapter_types()[about["method"]](**about["arguments"])
    method.attach(model)
    try:
        tensors = load_file(folder / "adapter.safetensors")
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{folder}/adapter.safetensors is missing or damaged ({error}). Train the adapter again") from error
    parameters = {name: p for name, p in model.named_parameters() if method.trainable(name)}
    if wrong := sorted(tensors.keys() ^ parameters.keys()):
        raise ValueError(f"{folder}/adapter.safetensors does not fit adapter.json: tensor {wrong[0]} is missing or too much")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise ValueError(f"{folder}/adapter.safetensors: {name} has shape {list(tensors[name].shape)}")
            parameter.copy_(tensors[name])
            parameter.requires_grad_(False)
    method.prepare_generation(model)
