"""Checkpoint folders: reading Hugging Face's and our own, writing ours, and adapters beside them."""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_llm.checkpoint.read import (
    _MAPPED_ELEMENTS,
    Reader,
    checked,
    empty_model,
    read_config,
    read_tensors,
    shapes_of,
    weight_files,
)
from lit_llm.checkpoint.tensor_names import to_lit
from lit_llm.devices.layer_placement import place
from lit_llm.model.config import LIT_CONFIG, Config
from lit_llm.model.cpu_linear import Layout, by_columns, check_layout, linears, replace
from lit_llm.model.gpt import GPT

_SECONDS_BEFORE_PROGRESS = 3


def load_model(
    checkpoint_dir: Path,
    device: torch.device | str | Sequence[torch.device] = "cpu",
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
    in_parts: bool = False,
    layout: Layout | None = None,
    empty: GPT | None = None,
) -> GPT:
    """GPT with all weights loaded and frozen, on a device or with its blocks spread over several; `fingerprint` is set. Peak
    memory is the model plus one tensor.

    The model is built on the meta device and every memory-mapped tensor takes its place in it, cast or quantized on the way.

    Args:
        in_parts: Load for `sharding.shard`, which moves and casts what a rank holds: weights stay in the mapped file, unless
            `dtype` makes them smaller, and each rank quantizes its own rows onto `device`.
        layout: Lay out the linears, each as it is read.
        empty: The model on the meta device, if it was built already.

    Raises:
        ValueError: as `check_layout`.
    """
    model = empty or empty_model(read_config(checkpoint_dir))
    config, shapes = model.config, shapes_of(model)  # before a linear is quantized
    if quantize is not None:
        from lit_llm.model.quantized_linear import quantize_linears

        quantize_linears(model, quantize, in_parts)
    devices = [torch.device(device)] if isinstance(device, (str, torch.device)) else device
    if layout is not None:
        check_layout(layout, devices[0], dtype, quantize is not None)
        if layout != "columns":
            for name in linears(model):
                replace(model, name, layout)
    if len(devices) > 1:
        model.placement = place(model, devices, dtype)
    native = (checkpoint_dir / LIT_CONFIG).is_file()
    tensors: Iterable[tuple[str, Reader]] = read_tensors(weight_files(checkpoint_dir, native))
    if not native:
        tensors = to_lit(config, tensors)
    model.fingerprint = _fill(model, shapes, tensors, devices[0], dtype, checkpoint_dir, in_parts, layout == "columns")
    if config.tie_embeddings and isinstance(model.lm_head, nn.Linear):
        model.lm_head.weight = model.wte.weight
    elif config.tie_embeddings:
        model.lm_head.load_weight(model.wte.weight)  # type: ignore[operator]
    for rope in (model.rope, model.local_rope):
        if rope is not None:
            rope.to("cpu" if in_parts else devices[0])
    return model


def _fill(
    model: GPT, shapes: dict[str, torch.Size], tensors: Iterable[tuple[str, Reader]], first: torch.device,
    dtype: torch.dtype | None, folder: Path, in_parts: bool, columns: bool,
) -> str:  # fmt: skip
    """Put every tensor in its place, on the first device if the model has no placement that says more, and return the
    fingerprint. Tells how far it is when that takes long."""
    plain_dtype = None if in_parts and dtype == torch.float32 else dtype
    rows, turned = {}, {f"{name}.weight" for name in linears(model)} if columns else set()
    if columns and model.config.tie_embeddings:
        turned.add("wte.weight")
    copies = columns or any(hasattr(module, "load_weight") for module in model.modules())
    n_tensors, start, progress = len(shapes), time.monotonic(), None
    for done, (name, tensor) in enumerate(checked(shapes, tensors, folder)):
        if tensor.dim() == 2 and name not in ("wte.weight", "wpe.weight"):
            rows[name] = tensor[0].to(torch.bfloat16).float()
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        device = first if model.placement is None or not name.startswith("h.") else model.placement[int(name.split(".")[1])]
        if leaf == "weight" and hasattr(module, "load_weight"):
            module.load_weight(tensor, device, dtype)  # type: ignore[operator]
        else:
            # Left in the mapped file, it would hold there the pages of its neighbours that were cast, quantized or copied; a
            # large one has none.
            copy = (copies and not in_parts and tensor.numel() < _MAPPED_ELEMENTS) or tensor.dim() < 2
            laid_out = by_columns(tensor) if name in turned else tensor
            tensor = laid_out.to("cpu" if in_parts else device, plain_dtype or tensor.dtype, copy=copy and laid_out is tensor)
            setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
        if copies and progress is None and time.monotonic() - start > _SECONDS_BEFORE_PROGRESS:
            from lit_llm.progress import Progress

            progress = Progress("loading: tensor", n_tensors, done)
        if progress is not None:
            progress.update()
    if progress is not None:
        progress.close()
    return _fingerprint(model.config, rows)


def _fingerprint(config: Config, rows: dict[str, Tensor]) -> str:
    """sha256 of the config and of the first row of each linear in bfloat16: equal for a folder and its converted twin."""
    default = {name: field.default for name, field in Config.__dataclass_fields__.items()}
    maths = {name: value for name, value in config.to_dict().items() if value != default[name]}
    digest = hashlib.sha256(json.dumps(maths, sort_keys=True).encode())
    for name in sorted(rows):
        digest.update(name.encode())
        digest.update(rows[name].numpy().tobytes())
    return digest.hexdigest()
