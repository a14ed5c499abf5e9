"""Tiny pre-quantized checkpoints: made by the libraries, or encoded here as the layouts are published."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny import hf_model, make_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
BNB: dict[str, dict[str, Any]] = {
    "bnb.nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bnb.nf4-dq": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "bnb.fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "bnb.fp4-dq": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "bnb.int8": {"load_in_8bit": True},
}


def plain(folder: Path, model_type: str = "llama", **changes: Any) -> Path:
    """A tiny checkpoint in float32."""
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads" or model_type in ("llama", "phi3")}
    hf_model(model_type, **{**sizes, **changes}).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    make_tokenizer(folder)
    return folder


def bitsandbytes(folder: Path, source: Path, skip: Iterable[str] | None = None, **options: Any) -> Path:
    """As transformers saves it."""
    config = BitsAndBytesConfig(**options, llm_int8_skip_modules=None if skip is None else list(skip))
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=config, dtype=torch.float32)
    model.save_pretrained(folder)
    copy_tokenizer(source, folder)
    return folder


def copy_tokenizer(source: Path, folder: Path) -> None:
    for file in source.glob("tokenizer*"):
        shutil.copy(file, folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def rewrite(
    folder: Path, source: Path, quantization_config: dict[str, Any], encode: Callable[[str, Tensor], dict[str, Tensor] | None]
) -> Path:
    """Copy a checkpoint, with the tensors that `encode` returns for a linear in place of its weight, unless it returns None."""
    shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        stem = name.removesuffix("weight")
        if (encoded := encode(stem, tensors[name])) is not None:
            del tensors[name]
            tensors |= {f"{stem}{part}": tensor.contiguous() for part, tensor in encoded.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    edit_config(folder, quantization_config=quantization_config)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
