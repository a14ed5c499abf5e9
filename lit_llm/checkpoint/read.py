"""Tensors of a checkpoint folder, read lazily and checked against its config."""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from lit_llm.files import read_json_object
from lit_llm.model.config import LIT_GPT_WEIGHTS, Config, convert_first
from lit_llm.model.gpt import GPT

LIT_WEIGHTS = "lit_model.safetensors"


HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


# Pages of a mapped file count as memory of the process from when they are read to when nothing refers to the mapping: one
# mapping for all tensors of a file would hold the file beside what is cast or quantized from it.
_MAPPED_ELEMENTS = 2**24


Reader = Callable[[], Tensor]


def read_config(checkpoint_dir: Path) -> Config:
    """Raises FileNotFoundError if the folder does not exist or is none, and as `Config.from_checkpoint`."""
    if not checkpoint_dir.is_dir():
        state = "is a file, not a folder" if checkpoint_dir.exists() else "does not exist"
        raise FileNotFoundError(
            f"--checkpoint_dir {checkpoint_dir} {state}. Download a checkpoint: python scripts/download.py --repo_id ORG/NAME"
        )
    return Config.from_checkpoint(checkpoint_dir)


def checked(
    expected: dict[str, torch.Size], tensors: Iterable[tuple[str, Reader]], folder: Path
) -> Iterator[tuple[str, Tensor]]:  # fmt: skip
    """Read tensors one by one. Raises ValueError unless they are exactly the expected ones, each once, in its shape."""
    missing = set(expected)
    for name, read in tensors:
        if name not in missing:
            raise ValueError(f"{folder}: tensor {name} stands there twice or has no place in the model")
        missing.remove(name)
        tensor = read()
        if tensor.shape != expected[name]:
            raise ValueError(
                f"{folder}: tensor {name} has shape {list(tensor.shape)}, its config says {list(expected[name])}. "
                "Weights and config do not belong together"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{folder}: tensor {name} has dtype {tensor.dtype}. Take the checkpoint that is not quantized")
        yield name, tensor
    if missing:
        names = ", ".join(sorted(missing)[:3])
        raise ValueError(f"{folder}: {len(missing)} tensors are missing, among them {names}. Download the checkpoint again")


def expected_shapes(config: Config) -> dict[str, torch.Size]:
    """Names and shapes of all weights of `GPT(config)`; a tied head is not listed."""
    return shapes_of(empty_model(config))


def shapes_of(model: GPT) -> dict[str, torch.Size]:
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del shapes["lm_head.weight"]
    return shapes


def empty_model(config: Config) -> GPT:
    """`GPT(config)` on the meta device, with shapes and without values."""
    with torch.device("meta"):
        return GPT(config)


def weight_files(checkpoint_dir: Path, native: bool) -> list[Path]:
    """Files that hold the weights: ours, or Hugging Face's safetensors or legacy pickles; one, or shards with an index.

    Raises:
        FileNotFoundError: if there are none, or a shard is missing.
        ValueError: if an index is broken or names a file outside of the folder.
    """
    for name in (LIT_WEIGHTS,) if native else HF_WEIGHTS:
        if (checkpoint_dir / name).is_file():
            return [checkpoint_dir / name]
        index = checkpoint_dir / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    if (checkpoint_dir / LIT_GPT_WEIGHTS).is_file():
        raise ValueError(convert_first(checkpoint_dir))
    raise FileNotFoundError(
        f"{checkpoint_dir} holds no weights. Download them first: "
        f"python scripts/download.py --repo_id {checkpoint_dir.parent.name}/{checkpoint_dir.name}"
    )


def _shards(index: Path) -> list[Path]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files")
    paths = []
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise ValueError(f"{index} names {name!r}, which lies outside of the folder. Do not trust this checkpoint")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index.parent} lacks the shard {name}. Download the checkpoint again to complete it")
        paths.append(index.parent / name)
    return paths


def read_tensors(files: Iterable[Path]) -> Iterator[tuple[str, Reader]]:
    """Name and reader of every tensor, lazily: safetensors are memory-mapped, pickles read with `weights_only=True`."""
    from safetensors import SafetensorError, safe_open

    for path in files:
        if path.suffix == ".safetensors":
            try:
                file = safe_open(path, framework="pt")  # open for as long as a reader refers to it
                elements = 0
                for name in file.keys():  # noqa: SIM118
                    size = math.prod(file.get_slice(name).get_shape())
                    if elements and elements + size > _MAPPED_ELEMENTS:
                        file, elements = safe_open(path, framework="pt"), 0
                    elements += size
                    yield name, lambda file=file, name=name: file.get_tensor(name)
            except SafetensorError as error:
                raise ValueError(f"{path} is damaged or incomplete ({error}). Download it again") from error
        else:
            yield from ((name, lambda tensor=tensor: tensor) for name, tensor in _read_pickle(path).items())


def _read_pickle(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"  # the format before torch 1.6 is not, and cannot be memory-mapped
    try:
        tensors = torch.load(path, map_location="cpu", mmap=is_zip, weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is damaged, or a pickle that holds more than tensors; it was not executed ({reason})"
        ) from error
    if isinstance(tensors, dict) and isinstance(tensors.get("model"), dict):
        tensors = tensors["model"]  # as Fabric saves a state
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"{path} does not hold a dict of tensors")
    return tensors
