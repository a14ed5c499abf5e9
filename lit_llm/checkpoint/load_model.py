"""Load a model from a checkpoint folder."""

import hashlib
import json
import re
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_llm.checkpoint.prequantized import prequantized
from lit_llm.checkpoint.read import (
    MAPPED_ELEMENTS,
    checked,
    empty_model,
    read_config,
    read_model_tensors,
    read_tensors,
    shapes_of,
    weight_files,
)
from lit_llm.checkpoint.tensor_names import hf_names
from lit_llm.devices.layer_placement import place
from lit_llm.memory import give_back
from lit_llm.model.config import Config
from lit_llm.model.cpu_linear import Layout, by_columns, check_layout, linears, replace
from lit_llm.model.experts import MoE
from lit_llm.model.gpt import GPT
from lit_llm.model.quantized_linear import QuantizedLinear, quantize_linears
from lit_llm.progress import Progress
from lit_llm.ranks import rank

_SECONDS_BEFORE_PROGRESS = 3


def load_model(
    checkpoint_dir: Path | str,
    device: torch.device | str | Sequence[torch.device] = "cpu",
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
    in_parts: bool = False,
    layout: Layout | None = None,
    empty: GPT | None = None,
) -> GPT:
    """Return a GPT with all weights loaded and frozen, on one device or with its blocks on several; `fingerprint` and
    `stored_dtypes` are set.

    The model is built on the meta device. Each memory-mapped tensor then takes its place in it, cast or quantized on the way,
    so that peak memory is the model plus one tensor.

    Args:
        dtype: None: the checkpoint's own.
        quantize: Applies to the linears of the blocks. None: what is stored quantized is dequantized. The value of
            `stored_quantization`: it is held as stored.
        in_parts: Load for `fsdp.shard`, which moves and casts the rows of a rank: weights stay in the mapped file, unless
            `dtype` makes them smaller, and each rank quantizes its own rows onto `device`.
        layout: Lay out the linears, each as it is read.
        empty: The model on the meta device, if it was built already.

    Raises:
        FileNotFoundError: if the folder or files of weights are missing.
        CheckpointError: if the tensors are not exactly those of the config.
        ValueError: as `quantize_linears` and `check_layout`.
    """
    checkpoint_dir = Path(checkpoint_dir)
    devices = [torch.device(device)] if isinstance(device, (str, torch.device)) else device
    model = empty or empty_model(read_config(checkpoint_dir))
    config, shapes = model.config, shapes_of(model)  # before a linear is quantized
    held, bits = _quantize(model, checkpoint_dir, quantize, in_parts)
    shapes |= bits
    if layout is not None:
        check_layout(layout, devices[0], dtype, quantize is not None)
        if layout != "columns":
            for name in linears(model):
                replace(model, name, layout)
    if len(devices) > 1:
        model.placement = place(model, devices, dtype)
    columns = {f"{name}.weight" for name in linears(model)} if layout == "columns" else set()
    if columns and config.tie_embeddings:
        columns.add("wte.weight")  # the head multiplies with it
    converts = bool(columns) or any(hasattr(module, "load_weight") for module in model.modules())
    tensors = checked(*read_model_tensors(checkpoint_dir, config, held), shapes, checkpoint_dir, in_parts, bits)
    tensors = _with_progress(tensors, len(shapes)) if converts else tensors  # else it is a matter of mapping files
    model.fingerprint = _fill(model, tensors, devices[0], dtype, in_parts, columns, converts, bits)
    for module in model.modules():
        if isinstance(module, MoE) and any(device.type == "cuda" for device in devices):
            module.put_together()
    if config.tie_embeddings and isinstance(model.lm_head, nn.Linear):
        model.lm_head.weight = model.wte.weight
    elif config.tie_embeddings:
        model.lm_head.load_weight(model.wte.weight)  # type: ignore[operator]
    for computed in (model.rope, model.local_rope, model.alibi):
        if computed is not None:
            computed.to("cpu" if in_parts else devices[0])
    return model


def _quantize(
    model: GPT, checkpoint_dir: Path, quantize: str | None, in_parts: bool
) -> tuple[dict[str, str], dict[str, torch.Size]]:
    """Replace linears by quantized ones. Return those to hold as they are stored, by upstream name, and the names and shapes of
    their parameters in stored bits.
    """
    stored = prequantized(checkpoint_dir)
    if stored is None or quantize is None or quantize != stored.quantization:
        if quantize is not None:
            quantize_linears(model, quantize, in_parts)
        held, linears = {}, {}
    else:
        files = weight_files(checkpoint_dir, native=False)
        held = stored.hold(model, lambda: read_tensors(*files), hf_names(model.config, checkpoint_dir), in_parts)
        linears = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
        model.stored_dtypes |= {f"{name}.weight": stored.dtype for name in linears}
    if stored is not None and rank() == 0:
        print(stored.about(len(linears), quantize), file=sys.stderr)
    parameters = ((f"{name}.{leaf}", p) for name, module in linears.items() for leaf, p in module.named_parameters())
    return held, {name: p.shape for name, p in parameters if not name.endswith(".bias")}


def _fill(
    model: GPT, tensors: Iterable[tuple[str, Tensor]], device: torch.device, dtype: torch.dtype | None, in_parts: bool,
    columns: set[str], converts: bool, bits: Collection[str],
) -> str:  # fmt: skip
    """Put every tensor in its place, on `device` unless `placement` has another for its block, and return the fingerprint.

    Args:
        columns: Weights to hold by columns.
        converts: Some weights are not held as the file has them.
        bits: Parameters of quantized linears that are held as the file has them.
    """
    # A tensor left in the mapped file keeps the pages of its neighbours there in memory, next to what was made from them: small
    # ones are copied out of it. A large one has a mapping of its own. In parts, `fsdp.shard` copies the rows of its rank.
    small = MAPPED_ELEMENTS if converts and not in_parts else 0
    plain_dtype = None if in_parts and dtype == torch.float32 else dtype  # float32 would be larger than the file's
    first_rows = {}
    for name, tensor in tensors:
        if converts:
            give_back()
        path, _, leaf = name.rpartition(".")
        module, block = model.get_submodule(path), re.match(r"h\.(\d+)\.", name)
        place_of = model.placement[int(block[1])] if model.placement and block else device
        if name in bits:
            module.hold(leaf, tensor, place_of)  # type: ignore[operator]
            continue
        if tensor.dim() == 2 and name not in ("wte.weight", "wpe.weight"):
            first_rows[name] = tensor[0].to(torch.bfloat16).float()
        model.stored_dtypes[name] = tensor.dtype
        if leaf == "weight" and hasattr(module, "load_weight"):
            module.load_weight(tensor, place_of, dtype)  # type: ignore[operator]
            continue
        if leaf in module._buffers:  # float32, whatever the weights are held in
            module.register_buffer(leaf, tensor.to("cpu" if in_parts else place_of, torch.float32, copy=True))
            continue
        held = by_columns(tensor) if name in columns else tensor
        copy = held is tensor and (tensor.dim() < 2 or tensor.numel() < small)
        held = held.to("cpu" if in_parts else place_of, plain_dtype or tensor.dtype, copy=copy)
        setattr(module, leaf, nn.Parameter(held, requires_grad=False))
    for name in bits:
        if name.endswith(".weight"):  # the row that a dequantized twin has
            row = model.get_submodule(name.removesuffix(".weight")).first_row()  # type: ignore[operator]
            first_rows[name] = row.to("cpu", model.stored_dtypes[name]).to(torch.bfloat16).float()
    return _fingerprint(model.config, first_rows)


def _with_progress(tensors: Iterable[tuple[str, Tensor]], n_tensors: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors, and show how many were loaded once that takes long."""
    start, progress = time.monotonic(), None
    for done, named in enumerate(tensors):
        yield named
        if progress is None and time.monotonic() - start > _SECONDS_BEFORE_PROGRESS:
            progress = Progress("loading: tensor", n_tensors, done)
        if progress is not None:
            progress.update()
    if progress is not None:
        progress.close()


def _fingerprint(config: Config, first_rows: dict[str, Tensor]) -> str:
    """sha256 of the config and of the first row of each linear in bfloat16: equal for a folder and its converted twin."""
    default = {name: field.default for name, field in Config.__dataclass_fields__.items()}
    maths = {name: value for name, value in config.to_dict().items() if value != default[name]}
    digest = hashlib.sha256(json.dumps(maths, sort_keys=True).encode())
    for name in sorted(first_rows):
        digest.update(name.encode())
        digest.update(first_rows[name].numpy().tobytes())
    return digest.hexdigest()
