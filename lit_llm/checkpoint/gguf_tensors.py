"""The bytes of tensors in GGUF files, dequantized by the `gguf` package."""

import math
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_llm.errors import CheckpointError
from lit_llm.text.gguf_file import GGUF, Info

# Elements that are dequantized at once: the intermediate arrays of the gguf package take several bytes for each.
_ELEMENTS = 2**20


def _type(name: str, info: Info) -> Any:
    import gguf

    try:
        return gguf.GGMLQuantizationType(info.type)
    except ValueError as error:
        raise CheckpointError(
            f"{info.path}: tensor {name} has the type {info.type}, which gguf {version('gguf')} does not know. "
            "Update it: pip install -U gguf"
        ) from error


def n_bytes(name: str, info: Info) -> int:
    """Return the size of a tensor in its file."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[_type(name, info)]
    if not info.shape or info.shape[-1] % block:
        raise CheckpointError(f"{info.path} is damaged: tensor {name} has shape {list(info.shape)} in blocks of {block}")
    return math.prod(info.shape) // block * size


def check_complete(file: GGUF) -> None:
    """Raise CheckpointError if the last tensor ends after the file."""
    for name, info in file.tensors.items():
        end, size = info.start + n_bytes(name, info), info.path.stat().st_size
        if end > size:
            raise CheckpointError(
                f"{info.path} is truncated: tensor {name} ends at byte {end}, the file has {size}. Download it again"
            )


def read_tensor(name: str, info: Info) -> Tensor:
    """Return a tensor of the file: F32, F16 and BF16 as they are, others dequantized to float32.

    Raises:
        CheckpointError: if the file ends before it, or its type cannot be dequantized.
    """
    import gguf

    kind = _type(name, info)
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind.name, torch.float32)
    tensor, total = torch.empty(info.shape, dtype=dtype), n_bytes(name, info)
    with info.path.open("rb") as file:
        file.seek(info.start)
        if kind.name in ("F32", "F16", "BF16"):
            found = file.readinto(tensor.view(torch.uint8).reshape(-1).numpy().data)
        else:
            found = 0
            row = info.shape[-1]
            rows = tensor.view(-1, row).split(max(1, _ELEMENTS // row))
            for part in rows:
                data = np.fromfile(file, np.uint8, part.numel() * total // tensor.numel())
                found += data.nbytes
                if data.nbytes * tensor.numel() < part.numel() * total:
                    break
                try:
                    values = gguf.quants.dequantize(data.reshape(len(part), -1), kind)
                except NotImplementedError as error:
                    raise CheckpointError(
                        f"{info.path}: tensor {name} has the type {kind.name}, which gguf {version('gguf')} cannot dequantize. "
                        "Use a file of another type, such as Q4_K_M or Q8_0"
                    ) from error
                part.copy_(torch.from_numpy(values))
    if found < total:
        raise CheckpointError(f"{info.path} is truncated: tensor {name} ends after the file. Download it again")
    return tensor
