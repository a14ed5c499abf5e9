"""Read the tensors of a checkpoint folder lazily, and check them against its config."""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_llm.checkpoint.tensor_names import to_lit
from lit_llm.errors import CheckpointError, brief
from lit_llm.files import read_json_object
from lit_llm.model.config import LIT_CONFIG, LIT_GPT_WEIGHTS, Config, convert_first
from lit_llm.model.gpt import GPT
from lit_llm.schema import shown

LIT_WEIGHTS = "lit_model.safetensors"
HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

# Elements that share a mapping of a file. Pages of a mapped file count as memory of the process from when they are read until
# nothing refers to the mapping: one mapping for all tensors would hold the file next to what is cast or quantized from it.
MAPPED_ELEMENTS = 2**24


class Index(TypedDict):
    """Contents of a `.index.json` that are read."""

    weight_map: dict[str, str]


Reader = Callable[[], Tensor]
Readers = Iterable[tuple[str, Reader]]


def read_config(checkpoint_dir: Path) -> Config:
    """Return the config of a folder. Raises FileNotFoundError if it is not a folder, and as `Config.from_checkpoint`."""
    if not checkpoint_dir.is_dir():
        state = "is a file, not a folder" if checkpoint_dir.exists() else "does not exist"
        raise FileNotFoundError(
            f"`checkpoint_dir` {checkpoint_dir} {state}. Download a checkpoint: python scripts/download.py --repo_id ORG/NAME"
        )
    return Config.from_checkpoint(checkpoint_dir)


def read_model_tensors(checkpoint_dir: Path, config: Config) -> Readers:
    """Return our name and a reader of every tensor in a folder of either layout."""
    native = (checkpoint_dir / LIT_CONFIG).is_file()
    tensors = read_tensors(weight_files(checkpoint_dir, native))
    return tensors if native else to_lit(config, tensors)


def stored_dtype(checkpoint_dir: Path) -> torch.dtype:
    """Return the dtype of the first tensor of a folder."""
    return next(iter(read_model_tensors(checkpoint_dir, read_config(checkpoint_dir))))[1]().dtype


def checked(shapes: dict[str, torch.Size], tensors: Readers, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Read tensors one by one. Raises CheckpointError unless they are exactly those in `shapes`, each once."""
    missing = set(shapes)
    for name, read in tensors:
        if name not in missing:
            reason = "is there twice" if name in shapes else "has no place in the model"
            raise CheckpointError(f"{folder}: tensor {name} {reason}. Download the checkpoint again")
        missing.remove(name)
        tensor = read()
        if tensor.shape != shapes[name]:
            raise CheckpointError(
                f"{folder}: tensor {name} has shape {list(tensor.shape)}, its config says {list(shapes[name])}. "
                "Weights and config do not belong together. Download the checkpoint again"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(f"{folder}: tensor {name} has dtype {tensor.dtype}. Use the checkpoint that is not quantized")
        yield name, tensor
    if missing:
        names = ", ".join(sorted(missing)[:3])
        raise CheckpointError(
            f"{folder}: {len(missing)} tensors are missing, among them {names}. Download the checkpoint again"
        )


def expected_shapes(config: Config) -> dict[str, torch.Size]:
    """Return the names and shapes of all weights of `GPT(config)`, without a tied head."""
    return shapes_of(empty_model(config))


def shapes_of(model: GPT) -> dict[str, torch.Size]:
    """Return the names and shapes of all weights of a plain model, without a tied head."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del shapes["lm_head.weight"]
    return shapes


def empty_model(config: Config) -> GPT:
    """Return `GPT(config)` on the meta device, with shapes and without values."""
    with torch.device("meta"):
        return GPT(config)


def weight_files(checkpoint_dir: Path, native: bool) -> list[Path]:
    """Return the files of weights: ours, or Hugging Face's safetensors or legacy pickles; one, or shards with an index.

    Raises:
        FileNotFoundError: if there are none, or a shard is missing.
        CheckpointError: if an index is broken or names a file outside of the folder.
    """
    for name in (LIT_WEIGHTS,) if native else HF_WEIGHTS:
        if (checkpoint_dir / name).is_file():
            return [checkpoint_dir / name]
        index = checkpoint_dir / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    if (checkpoint_dir / LIT_GPT_WEIGHTS).is_file():
        raise CheckpointError(convert_first(checkpoint_dir))
    raise FileNotFoundError(
        f"{checkpoint_dir} has no weights. Download them first: "
        f"python scripts/download.py --repo_id {checkpoint_dir.parent.name}/{checkpoint_dir.name}"
    )


def _shards(index: Path) -> list[Path]:
    paths = []
    for name in sorted(set(read_json_object(index, Index)["weight_map"].values())):
        if Path(name).name != name:
            raise CheckpointError(f"{index} names {shown(name)}, which is outside of the folder. Do not trust this checkpoint")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index.parent} lacks the shard {shown(name)}. Download the checkpoint again")
        paths.append(index.parent / name)
    return paths


def read_tensors(files: Iterable[Path]) -> Iterator[tuple[str, Reader]]:
    """Yield the name and a reader of every tensor: safetensors are memory-mapped, pickles read with `weights_only=True`."""
    for path in files:
        if path.suffix == ".safetensors":
            try:
                yield from _read_safetensors(path)
            except SafetensorError as error:
                raise CheckpointError(f"{path} is damaged or incomplete ({brief(error)}). Download it again") from error
        else:
            yield from ((name, lambda tensor=tensor: tensor) for name, tensor in _read_pickle(path).items())


def _read_safetensors(path: Path) -> Iterator[tuple[str, Reader]]:
    """Map the file again whenever MAPPED_ELEMENTS are exceeded; a mapping ends with the last reader and tensor from it."""
    file, elements = safe_open(path, framework="pt"), 0
    for name in file.keys():  # noqa: SIM118
        size = math.prod(file.get_slice(name).get_shape())
        if elements and elements + size > MAPPED_ELEMENTS:
            file, elements = safe_open(path, framework="pt"), 0
        elements += size
        yield name, lambda file=file, name=name: file.get_tensor(name)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"  # the format before torch 1.6 is not, and cannot be memory-mapped
    try:
        tensors = torch.load(path, map_location="cpu", mmap=is_zip, weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged, or a pickle that holds more than tensors; it was not executed ({brief(error)}). "
            "Use a checkpoint with safetensors"
        ) from error
    if isinstance(tensors, dict) and isinstance(tensors.get("model"), dict):
        tensors = tensors["model"]  # as Fabric saves a state
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"{path} does not hold a dict of tensors. Download it again")
    return tensors
