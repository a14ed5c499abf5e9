"""Write GGUF files: models, and LoRA adapters over them."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_llm.args.checkpoint import GGUFType
from lit_llm.checkpoint.gguf_config import (
    architecture_of,
    config_of,
    metadata,
    representable,
    same_maths,
)
from lit_llm.checkpoint.gguf_names import gguf_names, to_gguf_layout
from lit_llm.checkpoint.read import empty_model
from lit_llm.checkpoint.tensor_names import to_hf
from lit_llm.errors import CheckpointError
from lit_llm.model.config import Config
from lit_llm.model.gpt import GPT
from lit_llm.text.gguf_file import GGUF, Info

# Elements that are quantized at once: the intermediate arrays of the gguf package take several bytes for each.
_ELEMENTS = 2**20
# Held in 8 bits in a file of 4: llama.cpp does about the same for what each token reads (6 bits for the head).
_MORE_BITS = ("token_embd.weight", "output.weight")
# Held in float32, as llama.cpp's own converter does: routers and learned positions.
_FULL = ("ffn_gate_inp.weight", "position_embd.weight")


def write_model(path: Path, model: GPT, kind: GGUFType, more: Mapping[str, Any]) -> None:
    """Write a plain model as a GGUF file.

    Args:
        kind: Type of the matrices. One whose rows are not divisible by 32 is written in f16 instead of a quantized type.
        more: Metadata of tokenizer and model.

    Raises:
        CheckpointError: if no architecture of GGUF computes the model.
    """
    import gguf

    arch = architecture_of(model.config)
    config = representable(model.config, arch)
    keys, rope = metadata(config, arch)
    stored = [(name, tuple(tensor.shape)) for name, tensor in tensors_of(empty_model(model.config), config, arch)]
    _check_config(path, config, arch, keys, {**dict(stored), **{name: tuple(t.shape) for name, t in rope.items()}}, rope)
    writer = _open(path, arch, "model", {**keys, **more, "general.file_type": _file_type(kind)})
    types = {name: _type_of(name, shape, kind) for name, shape in stored} | dict.fromkeys(rope, gguf.GGMLQuantizationType.F32)
    for name, shape in [*((name, tuple(t.shape)) for name, t in rope.items()), *stored]:
        block, size = gguf.GGML_QUANT_SIZES[types[name]]
        n_bytes = int(np.prod(shape)) // block * size
        writer.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, raw_dtype=types[name])
    _write(writer, _checked([*rope.items()], tensors_of(model, config, arch), types))


def write_adapter(path: Path, arch: str, tensors: Mapping[str, Tensor]) -> None:
    """Write a LoRA adapter.

    Args:
        tensors: `NAME.lora_a` (r, C_in) and `NAME.lora_b` (C_out, r), with the scale in it, by the names of GGUF.
    """
    import gguf

    kind = gguf.GGMLQuantizationType.F32
    writer = _open(path, arch, "adapter", {"adapter.type": "lora", "adapter.lora.alpha": 0.0})  # 0: not alpha / r, but 1
    for name, tensor in tensors.items():
        writer.add_tensor_info(name, tuple(tensor.shape), np.dtype(np.float32), 4 * tensor.numel(), raw_dtype=kind)
    _write(writer, (encoded(name, tensor, kind) for name, tensor in tensors.items()))


def _open(path: Path, arch: str, kind: str, keys: Mapping[str, Any]) -> Any:
    import gguf

    writer = gguf.GGUFWriter(path, arch)
    writer.add_type(kind)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            add = {str: writer.add_string, bool: writer.add_bool, float: writer.add_float32}
            add.get(type(value), writer.add_uint32)(key, value)
    return writer


def _write(writer: Any, arrays: Iterable[np.ndarray]) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for array in arrays:
        writer.write_tensor_data(array)
    writer.close()


def tensors_of(model: GPT, config: Config, arch: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a model with the names and in the layout of GGUF."""
    held = {name: lambda tensor=tensor: tensor for name, tensor in model.state_dict().items()}
    for name, tensor in to_hf(model.config, held, gguf_names(model.config, arch).table):
        yield name, to_gguf_layout(tensor, name, config, arch)


def _check_config(
    path: Path, config: Config, arch: str, keys: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]],
    rope: Mapping[str, Tensor],
) -> None:  # fmt: skip
    """Raise CheckpointError unless the metadata describe the model: an architecture of GGUF has constants of its own."""
    infos = {name: Info(path, shape, 0, 0) for name, shape in shapes.items()}
    file = GGUF(path, {"general.architecture": arch, **keys}, infos)
    found, expected = config_of(file, rope).to_dict(), config.to_dict()
    for name, value in expected.items():
        if not same_maths(found[name], value):
            raise CheckpointError(
                f"GGUF cannot hold this model: its architecture {arch} means {name} {found[name]}, the model has {value}. "
                "Use the format of Hugging Face"
            )


def _file_type(kind: GGUFType) -> int:
    import gguf

    names = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
    return int(gguf.LlamaFileType[names[kind]])


def _type_of(name: str, shape: tuple[int, ...], kind: GGUFType) -> Any:
    import gguf

    types = gguf.GGMLQuantizationType
    if len(shape) < 2 or name.endswith(_FULL) or "_norm." in name:
        return types.F32
    found = types[kind.upper()]
    if kind == "q4_0" and name in _MORE_BITS:
        found = types.Q8_0
    return types.F16 if shape[-1] % gguf.GGML_QUANT_SIZES[found][0] else found


def _checked(
    rope: Iterable[tuple[str, Tensor]], tensors: Iterable[tuple[str, Tensor]], types: Mapping[str, Any]
) -> Iterator[np.ndarray]:
    for name, tensor in [*rope]:
        yield encoded(name, tensor, types[name])
    for name, tensor in tensors:
        yield encoded(name, tensor, types[name])


def encoded(name: str, tensor: Tensor, kind: Any) -> np.ndarray:
    """Return the bytes of a tensor in a ggml type.

    Raises:
        CheckpointError: if a value is too large for float16.
    """
    import gguf

    if kind.name == "F16" and tensor.dtype != torch.float16 and tensor.abs().max() > torch.finfo(torch.float16).max:
        raise CheckpointError(
            f"tensor {name} has values up to {tensor.abs().max():.3g}, which float16 cannot hold. Use `gguf_type` bf16"
        )
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(kind.name)
    if plain is not None:
        return tensor.detach().to(plain).contiguous().view(torch.uint8).numpy().reshape(-1)
    rows = tensor.detach().reshape(-1, tensor.size(-1)).split(max(1, _ELEMENTS // tensor.size(-1)))
    return np.concatenate([gguf.quants.quantize(part.float().numpy(), kind).reshape(-1) for part in rows])
