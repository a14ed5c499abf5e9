"""Write checkpoint folders in our layout."""

import shutil
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lit_llm.checkpoint.gguf_read import gguf_companions
from lit_llm.checkpoint.read import LIT_WEIGHTS
from lit_llm.devices.fsdp import whole
from lit_llm.files import write_json
from lit_llm.model.config import LIT_CONFIG
from lit_llm.model.gpt import GPT
from lit_llm.text.gguf_file import is_gguf

# Files that are copied with the weights into converted, merged and finetuned folders.
COMPANION_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "config.json", "generation_config.json", "chat_template.jinja", "LICENSE", "LICENSE.txt",
)  # fmt: skip


def write_checkpoint(folder: Path | None, model: GPT, source_dir: Path, dtype: torch.dtype | None = None) -> None:
    """Write the model and the companion files of `source_dir` into an existing folder.

    Each weight is written in `dtype` or, if that is None, as in the files that the model was loaded from.

    Weights that ranks hold in parts are gathered one at a time. A rank without a folder only takes part in that.
    """
    tensors = model.state_dict()
    if model.config.tie_embeddings:
        del tensors["lm_head.weight"]
    gathered = ((name, whole(tensor).cpu()) for name, tensor in tensors.items())
    if folder is None:
        deque(gathered, maxlen=0)
        return
    # Cast one at a time: there may be no memory for a cast copy of the whole model.
    cast = ((name, tensor.to(dtype or model.stored_dtypes.get(name, tensor.dtype))) for name, tensor in gathered)
    write_shards(cast, folder, LIT_WEIGHTS)
    write_json(folder / LIT_CONFIG, model.config.to_dict())
    copy_companions(source_dir, folder)


def copy_companions(source_dir: Path, folder: Path) -> None:
    """Copy the tokenizer, configurations and licence; those of a GGUF file are made from its metadata."""
    if is_gguf(source_dir):
        for name, content in gguf_companions(source_dir).items():
            (folder / name).write_bytes(content)
    for name in COMPANION_FILES:
        if (source_dir / name).is_file():
            shutil.copyfile(source_dir / name, folder / name)


def write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path, name: str, max_bytes: int = 5 * 10**9) -> list[Path]:
    """Write tensors as `name`, or as numbered shards of at most `max_bytes` each and `name.index.json`; return the files.

    Holds one shard in memory.
    """
    shard: dict[str, Tensor] = {}
    files: list[Path] = []
    weight_map: dict[str, int] = {}
    size = total = 0
    stem, suffix = Path(name).stem, Path(name).suffix

    def flush() -> None:
        files.append(folder / f"{stem}-{len(files) + 1:05d}{suffix}")
        save_safetensors(shard, files[-1], {"format": "pt"})
        shard.clear()

    for tensor_name, tensor in tensors:
        if size and size + tensor.nbytes > max_bytes:
            flush()
            size = 0
        shard[tensor_name] = tensor
        weight_map[tensor_name] = len(files)
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    if len(files) == 1:
        return [files[0].rename(folder / name)]
    files = [file.rename(file.with_name(f"{file.stem}-of-{len(files):05d}{suffix}")) for file in files]
    index = {"metadata": {"total_size": total}, "weight_map": {n: files[i].name for n, i in weight_map.items()}}
    write_json(folder / f"{name}.index.json", index)
    return [*files, folder / f"{name}.index.json"]


def save_safetensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors. Raises OSError if the disk is full, as other writers do."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:  # it wraps the operating system's error in its own
        raise OSError(f"cannot write {path}: {error}. Free space on the disk, or write to another one") from error
    path.chmod(0o644)  # safetensors makes files that only the owner can read
