"""Adapter folders, ours and PEFT's: the trained parameters of a method, its arguments, and the base that they belong to."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lit_llm.checkpoint.peft_adapters import PEFT_CONFIG, PeftAdapter, about_peft, is_peft, peft_weights, read_peft
from lit_llm.checkpoint.read import check_finite, empty_model
from lit_llm.checkpoint.write import save_safetensors, write_checkpoint
from lit_llm.devices.fsdp import reshard, whole
from lit_llm.errors import CheckpointError, OptionError, brief
from lit_llm.files import read_json_object, write_json
from lit_llm.methods.method import Method
from lit_llm.methods.registry import adapter_types, check_arguments
from lit_llm.model.config import Config
from lit_llm.model.gpt import GPT
from lit_llm.schema import conform, shown
from lit_llm.text.conversation import CHAT_TEMPLATE, default_style
from lit_llm.text.styles import STYLES
from lit_llm.text.tokenizer import Tokenizer

SAME = 2**-7
"""Largest difference of equal weights, as a share of the largest: one may have been rounded to bfloat16."""

if TYPE_CHECKING:
    StyleName = str
else:
    StyleName = Literal[(CHAT_TEMPLATE, *STYLES)]


def write_adapter(
    folder: Path | None,
    model: GPT,
    method: Method,
    checkpoint_dir: Path,
    prompt_style: str | None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Write `adapter.safetensors` and `adapter.json` into an existing folder.

    A rank without a folder only helps to gather parameters that ranks hold in parts.
    """
    reshard(model)
    tensors = {name: whole(p.detach()) for name, p in model.named_parameters() if method.trainable(name)}
    if folder is None:
        return
    save_safetensors(tensors, folder / "adapter.safetensors")
    about = _about_method(method) | _about_base(model, checkpoint_dir, prompt_style, template_kwargs)
    write_json(folder / "adapter.json", about)


def write_finetuned(
    folder: Path | None,
    model: GPT,
    method: Method,
    checkpoint_dir: Path,
    prompt_style: str | None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Write a fully finetuned model, in the dtypes of its base, and `finetuned.json` into an existing folder.

    A rank without a folder only helps to gather weights that ranks hold in parts.
    """
    reshard(model)
    write_checkpoint(folder, model, checkpoint_dir)
    if folder is not None:
        about = _about_method(method) | _about_base(model, checkpoint_dir, prompt_style, template_kwargs)
        write_json(folder / "finetuned.json", about)


def _about_method(method: Method) -> dict[str, Any]:
    about = {"method": method.name, "arguments": method.arguments()}
    return about if method.init_from is None else about | {"init_from": method.init_from}


def _about_base(
    model: GPT, checkpoint_dir: Path, prompt_style: str | None, template_kwargs: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "base_checkpoint_dir": str(checkpoint_dir.resolve()),
        "base_fingerprint": model.fingerprint,
        "prompt_style": prompt_style,
        **({"template_kwargs": dict(template_kwargs)} if template_kwargs else {}),
        "versions": {name: version(name) for name in ("torch", "lightning")},
    }


def write_merged(folder: Path, model: GPT, checkpoint_dir: Path, adapters: Sequence[Path], weights: Sequence[float]) -> str:
    """Write `finetuned.json` for a merged checkpoint, and return the prompt style of the adapters.

    If they have several, the first one's is used, with a warning.
    """
    abouts = [read_adapter(adapter) for adapter in adapters]
    for adapter, about in zip(adapters, abouts, strict=True):
        if about["prompt_style"] is None and is_peft(adapter) and (folder / "tokenizer_config.json").is_file():
            about["prompt_style"] = default_style(Tokenizer(folder), is_text=False)
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
    first = abouts[0]
    asked = first["prompt_style"], first.get("template_kwargs")
    write_json(folder / "finetuned.json", about | _about_base(model, checkpoint_dir, *asked))
    return styles[0]


class Finetuned(TypedDict):
    """Contents of `finetuned.json` that are read."""

    prompt_style: StyleName | None
    template_kwargs: NotRequired[dict[str, Any]]


class AdapterAbout(Finetuned):
    """Contents of `adapter.json` that are read."""

    method: str
    arguments: dict[str, Any]
    base_checkpoint_dir: str
    base_fingerprint: str


_AGAIN = "Train the adapter again"


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter.json").is_file() or is_peft(folder)


def adapter_files(folder: Path) -> list[Path]:
    """Return the files that determine what an adapter computes."""
    if is_peft(folder):
        return [folder / PEFT_CONFIG, peft_weights(folder)]
    return [folder / "adapter.json", folder / "adapter.safetensors"]


def read_adapter(folder: Path) -> AdapterAbout:
    """Return the contents of `adapter.json`, with all arguments of the method; for an adapter of PEFT, as `about_peft` does.

    Raises:
        FileNotFoundError: if `folder` is not an adapter folder.
        CheckpointError: if the file is damaged.
    """
    path = folder / "adapter.json"
    if not path.is_file() and is_peft(folder):
        return conform(about_peft(folder), AdapterAbout, peft_weights(folder), "Export the adapter again")
    if not path.is_file():
        trained = f"Use {folder / 'final'}" if (folder / "final").is_dir() else "Train one: python finetune/lora.py"
        raise FileNotFoundError(f"{folder} has no adapter, neither adapter.json nor PEFT's {PEFT_CONFIG}. {trained}")
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
    about = _finetuned(folder)
    return None if about is None else about["prompt_style"]


def trained_template_kwargs(folder: Path) -> dict[str, Any]:
    """Return the variables that the chat template had in the finetuning of an adapter or a checkpoint."""
    return (_finetuned(folder) or {}).get("template_kwargs") or {}


def _finetuned(folder: Path) -> Finetuned | None:
    if is_adapter(folder):
        return read_adapter(folder)
    path = folder / "finetuned.json"
    return read_json_object(path, Finetuned, "Finetune or merge again") if path.is_file() else None


class Adapter:
    """A saved adapter for a model, whose method is known before the weights of the model are loaded."""

    def __init__(self, folder: Path, config: Config) -> None:
        """Read the method. Raises as `read_adapter` and `read_peft` do."""
        self.folder, self.blank = folder, empty_model(config)
        self.about = read_adapter(folder)
        self.path = adapter_files(folder)[0]
        self.peft: PeftAdapter | None = None
        if self.path.name == PEFT_CONFIG:
            self.peft = read_peft(folder, self.blank)
            self.about["arguments"] = self.peft.arguments
        self.method = _method(self.path, self.about)

    def check_base(self, model: GPT) -> None:
        """Raise CheckpointError if the adapter was trained on another base, as far as that is known: PEFT only names it."""
        base = self.about["base_checkpoint_dir"][:300]
        for name, copy in ({} if self.peft is None else self.peft.copies).items():
            weight = model.get_parameter(name).detach()
            if (weight.float() - copy.to(weight.device)).abs().max() > SAME * copy.abs().max():
                raise CheckpointError(
                    f"{adapter_files(self.folder)[1]}: {name} differs from that of the base: the adapter was trained on "
                    f"another one ({base}). Use that one as `checkpoint_dir`"
                )
        if self.peft is None and self.about["base_fingerprint"] != model.fingerprint:
            raise CheckpointError(
                f"the adapter in {self.folder} was trained on another base ({base}). Use that one as `checkpoint_dir`"
            )

    def tensors(self) -> dict[str, Tensor]:
        """Read the parameters. Raises CheckpointError unless they are exactly those of the method."""
        with _naming(self.path), torch.device("meta"):
            self.method.attach(self.blank)  # without memory, until the file is known to hold all these tensors
        shapes = {name: list(p.shape) for name, p in self.blank.named_parameters() if self.method.trainable(name)}
        if self.peft is None:
            return _read_parameters(self.folder / "adapter.safetensors", shapes)
        assert {name: list(tensor.shape) for name, tensor in self.peft.tensors.items()} == shapes
        return self.peft.tensors


def attach_adapter(model: GPT, folder: Path) -> None:
    """Attach a saved adapter to the model that it was trained on, to generate with it.

    Raises:
        CheckpointError: if it was trained on another base, or its tensors are not exactly those of its method.
    """
    adapter = Adapter(folder, model.config)
    adapter.check_base(model)
    tensors = adapter.tensors()
    adapter.method.attach(model)
    fill(model, tensors)
    adapter.method.prepare_generation(model)


@torch.no_grad()
def fill(model: GPT, tensors: dict[str, Tensor]) -> None:
    """Put the values of an adapter into the parameters of its method, which are frozen then."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)
        parameters[name].requires_grad_(False)


def _read_parameters(path: Path, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Read the tensors of an adapter. Raises CheckpointError unless they are exactly those in `shapes`."""
    try:
        tensors = load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise CheckpointError(f"{path} is missing or damaged ({brief(error)}). {_AGAIN}") from error
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(found.keys() | shapes.keys()):
        if found.get(name) != shapes.get(name):
            difference = f"tensor {shown(name)} is {found.get(name, 'missing')}, expected {shapes.get(name, 'none')}"
            raise CheckpointError(f"{path} does not fit adapter.json: {difference}. {_AGAIN}")
        if not tensors[name].is_floating_point():
            raise CheckpointError(f"{path}: tensor {name} has dtype {tensors[name].dtype}, expected torch.float32. {_AGAIN}")
        check_finite(tensors[name], f"{path}: tensor {name}")
    return tensors
