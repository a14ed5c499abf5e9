"""Read the tensors of a checkpoint folder lazily, and check them against its config."""

import math
import os
import pickle
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_llm.checkpoint.gguf_read import gguf_config, gguf_tensors
from lit_llm.checkpoint.prequantized import read_quantization
from lit_llm.checkpoint.tensor_names import QUANTIZED, Names, Reader, hf_names, why_unexpected
from lit_llm.errors import CheckpointError, brief
from lit_llm.files import read_weight_map
from lit_llm.model.config import LIT_CONFIG, LIT_GPT_WEIGHTS, Config, convert_first
from lit_llm.model.gpt import GPT
from lit_llm.ranks import own_rows
from lit_llm.schema import shown
from lit_llm.text.gguf_file import is_gguf

LIT_WEIGHTS = "lit_model.safetensors"
HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

# Elements that share a mapping of a file. Pages of a mapped file count as memory of the process from when they are read until
# nothing refers to the mapping: one mapping for all tensors would hold the file next to what is cast or quantized from it.
MAPPED_ELEMENTS = 2**24

LONGEST_NAME = 500
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def read_config(checkpoint_dir: Path) -> Config:
    """Return the config of a folder, whose head is tied to the embedding if the stored tensors say so, or of a GGUF file.

    Raises:
        FileNotFoundError: if it is neither.
        CheckpointError: as `Config.from_checkpoint`.
    """
    if is_gguf(checkpoint_dir):
        return gguf_config(checkpoint_dir)
    if not checkpoint_dir.is_dir():
        state = "is a file, not a folder" if checkpoint_dir.exists() else "does not exist"
        raise FileNotFoundError(
            f"`checkpoint_dir` {checkpoint_dir} {state}. Download a checkpoint: python scripts/download.py --repo_id ORG/NAME"
        )
    config = Config.from_checkpoint(checkpoint_dir)
    return config if (checkpoint_dir / LIT_CONFIG).is_file() else tied_as_stored(config, checkpoint_dir)


def tied_as_stored(config: Config, checkpoint_dir: Path) -> Config:
    """Return the config with `tie_embeddings` as the tensors in Hugging Face's layout are, as transformers decides.

    Tied are tensors that are equal, and one that is stored alone, under either name. Without weights `config` is right.
    """
    try:
        _, weight_map = weight_files(checkpoint_dir, native=False)
    except FileNotFoundError:  # an estimate needs no weights
        return config
    names = hf_names(config, checkpoint_dir)
    ends = names.ends()
    stored = {ends[name]: read for name, read in read_hf_tensors(checkpoint_dir, names) if name in ends}
    if len(stored) == 2:
        tied = config.tie_embeddings and same_values(stored["wte"](), stored["lm_head"]())
        found = "different tensors for embedding and head"
    else:
        in_index = {ends[name] for name in weight_map if name in ends}
        tied = config.tie_embeddings or (len(stored) == 1 and in_index <= stored.keys())  # else a shard lacks one of them
        found = "one tensor for embedding and head"
    if tied != config.tie_embeddings:
        flag, state = str(config.tie_embeddings).lower(), "tied" if tied else "untied"
        warnings.warn(
            f"{checkpoint_dir}: tie_word_embeddings in config.json is {flag}, but the weights hold {found}. They are {state}",
            stacklevel=2,
        )
    return replace(config, tie_embeddings=tied)


def same_values(a: Tensor, b: Tensor) -> bool:
    """Compare values, some rows at a time: neither is copied as a whole."""
    if a.shape != b.shape or a.dim() != 2:
        return False
    rows = max(1, MAPPED_ELEMENTS // a.size(1))
    return all(torch.equal(x.double(), y.double()) for x, y in zip(a.split(rows), b.split(rows), strict=True))


def read_model_tensors(
    checkpoint_dir: Path, config: Config, held: Mapping[str, str] | None = None
) -> tuple[Names, Iterable[tuple[str, Reader]]]:
    """Return the names in a folder of either layout or in a GGUF file, and its tensors.

    Args:
        held: Quantized linears to hold as stored, as `Prequantized.hold` returns them; others are dequantized.
    """
    if is_gguf(checkpoint_dir):
        return gguf_tensors(checkpoint_dir, config)
    if (checkpoint_dir / LIT_CONFIG).is_file():
        return Names(config, None), read_tensors(*weight_files(checkpoint_dir, native=True))
    names = hf_names(config, checkpoint_dir)
    return names, read_hf_tensors(checkpoint_dir, names, held)


def read_hf_tensors(checkpoint_dir: Path, names: Names, held: Mapping[str, str] | None = None) -> Iterable[tuple[str, Reader]]:
    """Return the tensors of a folder in Hugging Face's layout, with a weight for each linear that is quantized."""
    files, weight_map = weight_files(checkpoint_dir, native=False)
    stored = read_quantization(checkpoint_dir / "config.json")
    if stored is None:
        return read_tensors(files, weight_map)
    return stored.weights(lambda: read_tensors(files, weight_map), names, held)


def checked(
    names: Names,
    tensors: Iterable[tuple[str, Reader]],
    shapes: Mapping[str, torch.Size],
    folder: Path,
    in_parts: bool = False,
    bits: Collection[str] = (),
) -> Iterator[tuple[str, Tensor]]:
    """Yield our name and the tensor for each of `tensors`.

    Args:
        shapes: As `expected_shapes` returns them.
        in_parts: Look for NaN in the rows of this rank only.
        bits: Names of parameters in stored bits, which may be integers.

    Raises:
        CheckpointError: unless they are exactly those in `shapes`, each once, and finite. Messages have the names in the files.
    """
    missing = set(shapes)
    for name, upstream, read in names.ours(tensors):
        if name is not None and name not in shapes and name.endswith(".bias") and not read().any():
            continue  # AutoGPTQ writes zeros for linears without a bias
        if name is None or name not in shapes:
            raise CheckpointError(f"{folder}: unexpected tensor {upstream}: {why_unexpected(upstream, folder)}")
        if name not in missing:
            raise CheckpointError(f"{folder}: tensor {upstream} is there twice. Download the checkpoint again")
        missing.remove(name)
        try:
            tensor = read()
        except SafetensorError as error:
            raise CheckpointError(f"{folder}: tensor {upstream} is damaged ({error}). Download the checkpoint again") from error
        if tensor.dtype not in WEIGHT_DTYPES and name not in bits:
            raise CheckpointError(f"{folder}: tensor {upstream} has dtype {tensor.dtype}: {QUANTIZED}")
        if tensor.shape != shapes[name]:
            raise CheckpointError(
                f"{folder}: tensor {upstream} has shape {list(tensor.shape)}, its config says {list(shapes[name])}. "
                "Weights and config do not belong together. Download the checkpoint again"
            )
        check_finite(tensor[own_rows(len(tensor))] if in_parts and tensor.dim() else tensor, f"{folder}: tensor {upstream}")
        yield name, tensor
    if missing:
        absent = sorted({names.upstream(name) for name in missing})
        some = ", ".join(absent[:3])
        raise CheckpointError(f"{folder}: {len(absent)} tensors are missing, among them {some}. Download the checkpoint again")


def check_finite(tensor: Tensor, source: str) -> None:
    """Raise CheckpointError, which begins with `source`, if a value is NaN or infinite."""
    if tensor.sum().isfinite():  # reads at the speed of memory; a finite float16 may have an infinite sum
        return
    n = sum(int((~part.isfinite()).sum()) for part in tensor.flatten().split(MAPPED_ELEMENTS))
    if n:
        raise CheckpointError(
            f"{source} has {n} of {tensor.numel()} values that are NaN or infinite: the file is damaged, or the training that "
            "wrote it diverged. Use another checkpoint"
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


def weight_files(checkpoint_dir: Path, native: bool) -> tuple[list[Path], dict[str, str]]:
    """Return the files of weights: ours, or Hugging Face's safetensors or legacy pickles; one, or shards with an index. The
    second value is the name of the file for each tensor in the index.

    Raises:
        FileNotFoundError: if there are none, or a shard is missing.
        CheckpointError: if an index is broken or names a file outside of the folder.
    """
    for name in (LIT_WEIGHTS,) if native else HF_WEIGHTS:
        if (checkpoint_dir / name).is_file():
            return [checkpoint_dir / name], {}
        index = checkpoint_dir / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    if (checkpoint_dir / LIT_GPT_WEIGHTS).is_file():
        raise CheckpointError(convert_first(checkpoint_dir))
    raise FileNotFoundError(
        f"{checkpoint_dir} has no weights. Download them first: "
        f"python scripts/download.py --repo_id {checkpoint_dir.parent.name}/{checkpoint_dir.name}"
    )


def _shards(index: Path) -> tuple[list[Path], dict[str, str]]:
    weight_map, paths = read_weight_map(index), []
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise CheckpointError(f"{index} names {shown(name)}, which is outside of the folder. Do not trust this checkpoint")
        if not os.path.isfile(index.parent / name):  # False for a name that no file can have, too
            raise FileNotFoundError(f"{index.parent} lacks the shard {shown(name)}. Download the checkpoint again")
        paths.append(index.parent / name)
    return paths, weight_map


def read_tensors(files: Iterable[Path], weight_map: Mapping[str, str] | None = None) -> Iterator[tuple[str, Reader]]:
    """Yield the name and a reader of every tensor: safetensors are memory-mapped, pickles read with `weights_only=True`.

    Args:
        weight_map: The file of each tensor: a copy in another file is stale. A tensor that it lacks may be in any file.
    """
    for path in files:
        for name, read in _read_file(path):
            if len(name) > LONGEST_NAME:
                raise CheckpointError(f"{path} is damaged: a tensor has a name of {len(name)} characters. Download it again")
            if weight_map is None or weight_map.get(name, path.name) == path.name:
                yield name, read


def _read_file(path: Path) -> Iterator[tuple[str, Reader]]:
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
    except Exception as error:  # damaged bytes may cause any
        reason = brief(error) if isinstance(error, pickle.UnpicklingError | RuntimeError) else type(error).__name__
        raise CheckpointError(
            f"{path} is damaged, or a pickle that holds more than tensors; it was not executed ({reason}). "
            "Use a checkpoint with safetensors"
        ) from error
    if isinstance(tensors, dict) and isinstance(tensors.get("model"), dict):
        tensors = tensors["model"]  # as Fabric saves a state
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise CheckpointError(f"{path} does not hold a dict of tensors. Download it again")
    return tensors
