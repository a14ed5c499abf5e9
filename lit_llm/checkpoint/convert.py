"""Convert Hugging Face's layout, Lit-GPT's and GGUF to ours."""

from collections.abc import Iterable
from pathlib import Path

import torch

from lit_llm.checkpoint.lit_gpt import KEPT_CONFIG, config_file, read_lit_gpt
from lit_llm.checkpoint.prequantized import read_quantization
from lit_llm.checkpoint.read import (
    HF_WEIGHTS,
    LIT_WEIGHTS,
    checked,
    expected_shapes,
    read_config,
    read_hf_tensors,
    read_model_tensors,
    tied_as_stored,
)  # fmt: skip
from lit_llm.checkpoint.tensor_names import Names, Reader, hf_names
from lit_llm.checkpoint.write import copy_companions, write_shards
from lit_llm.errors import OptionError
from lit_llm.files import claimed, new_folder, remove_leftovers, unused_folder, write_json, write_whole
from lit_llm.model.config import LIT_CONFIG, LIT_GPT_WEIGHTS, Config
from lit_llm.text.gguf_file import is_gguf


def convert(checkpoint_dir: Path | str, dtype: str | None = None, dequantize: bool = False) -> None:
    """Write our weights and `lit_config.json` next to a checkpoint in Hugging Face's or Lit-GPT's layout; for a GGUF file, a
    folder with its name.

    If the folder has weights of both, those of Hugging Face are converted. Only results of an earlier conversion are removed; a
    `lit_config.json` of Lit-GPT is kept as `lit_gpt_config.json`. Holds one shard in memory.

    Args:
        dtype: Name of a torch dtype; None keeps each tensor's.
        dequantize: Write weights that are stored quantized as plain ones, by default in the dtype of config.json.

    Raises:
        OptionError: if the weights are stored quantized without `dequantize`, or the other way round.
        FileNotFoundError, ValueError: as `load_model`; an earlier result stays as it was.
    """
    checkpoint_dir = Path(checkpoint_dir)
    if is_gguf(checkpoint_dir):
        return _convert_gguf(checkpoint_dir, dtype)
    theirs = None if _is_hf(checkpoint_dir) else config_file(checkpoint_dir)
    _check_quantization(checkpoint_dir, dequantize)
    names, stored = _read_hf(checkpoint_dir) if theirs is None else read_lit_gpt(checkpoint_dir, theirs)
    tensors = checked(names, stored, expected_shapes(names.config), checkpoint_dir)
    if dtype is not None:
        tensors = ((name, tensor.to(getattr(torch, dtype))) for name, tensor in tensors)
    with claimed(checkpoint_dir, "checkpoint_dir", in_place=True):
        remove_leftovers(checkpoint_dir)
        with new_folder(checkpoint_dir / ".converted") as folder:
            write_shards(tensors, folder, LIT_WEIGHTS)
            write_json(folder / LIT_CONFIG, names.config.to_dict())
        if theirs is not None and theirs.name == LIT_CONFIG:
            write_whole(checkpoint_dir / KEPT_CONFIG, theirs.read_bytes())
        for old in [checkpoint_dir / LIT_CONFIG, *checkpoint_dir.glob("lit_model*.safetensors*")]:
            old.unlink(missing_ok=True)
        # The config is last: with it the folder becomes one of ours.
        for new in sorted((checkpoint_dir / ".converted").iterdir(), key=lambda path: path.name == LIT_CONFIG):
            new.rename(checkpoint_dir / new.name)
        (checkpoint_dir / ".converted").rmdir()
    source = "" if theirs is None else f" {LIT_GPT_WEIGHTS} of Lit-GPT"
    print(f"Converted{source}. Try it: python generate/base.py --checkpoint_dir {checkpoint_dir} --prompt 'Hello'")


def _check_quantization(folder: Path, dequantize: bool) -> None:
    stored = read_quantization(folder / "config.json") if _is_hf(folder) else None
    if stored is None and dequantize:
        raise OptionError(f"`dequantize` is for quantized weights, but those in {folder} are not quantized. Omit it")
    if stored is not None and not dequantize:
        raise OptionError(
            f"{folder} holds {stored.method} weights, which need no conversion: use the folder as it is as `checkpoint_dir`. "
            "Add `dequantize` to write plain weights"
        )


def _convert_gguf(path: Path, dtype: str | None) -> None:
    """Write a folder with the name of the file, next to it."""
    config, folder = read_config(path), path.with_suffix("")
    tensors = checked(*read_model_tensors(path, config), expected_shapes(config), path)
    if dtype is not None:
        tensors = ((name, tensor.to(getattr(torch, dtype))) for name, tensor in tensors)
    with unused_folder(folder, "checkpoint_dir", [path]) as new:
        write_shards(tensors, new, LIT_WEIGHTS)
        write_json(new / LIT_CONFIG, config.to_dict())
        copy_companions(path, new)
    print(f"Converted to {folder}. Try it: python generate/base.py --checkpoint_dir {folder} --prompt 'Hello'")


def _is_hf(folder: Path) -> bool:
    """Lit-GPT left Hugging Face's weights next to its own, but no config.json."""
    has_weights = any((folder / name).is_file() for file in HF_WEIGHTS for name in (file, f"{file}.index.json"))
    return has_weights and (folder / "config.json").is_file()


def _read_hf(checkpoint_dir: Path) -> tuple[Names, Iterable[tuple[str, Reader]]]:
    if not (checkpoint_dir / "config.json").is_file():
        read_config(checkpoint_dir)  # raises the error that names what the folder lacks
    config = tied_as_stored(Config.from_file(checkpoint_dir / "config.json"), checkpoint_dir)
    names = hf_names(config, checkpoint_dir)
    return names, read_hf_tensors(checkpoint_dir, names)
