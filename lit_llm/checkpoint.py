"""Checkpoint folders: reading Hugging Face's and our own, writing ours, and adapters beside them."""

import hashlib
import json
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_llm.devices.fsdp import whole
from lit_llm.devices.layer_placement import place
from lit_llm.files import read_json_object, write_json
from lit_llm.model.config import LIT_CONFIG, LIT_GPT_WEIGHTS, Config, convert_first
from lit_llm.model.cpu_linear import Layout, by_columns, check_layout, lay_out, linears, replace
from lit_llm.model.device import resolve_device, weights_dtype
from lit_llm.model.gpt import GPT
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.weights import to_lit

LIT_WEIGHTS = "lit_model.safetensors"
HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# What travels with the weights into converted, merged and finetuned folders.
COMPANION_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "config.json", "generation_config.json", "chat_template.jinja", "LICENSE", "LICENSE.txt",
)  # fmt: skip

# Pages of a mapped file count as memory of the process from when they are read to when nothing refers to the mapping: one
# mapping for all tensors of a file would hold the file beside what is cast or quantized from it.
_MAPPED_ELEMENTS = 2**24

_SECONDS_BEFORE_PROGRESS = 3

Reader = Callable[[], Tensor]


def load(
    checkpoint_dir: Path | str,
    adapter_dir: Path | str | None = None,
    device: str | Sequence[str] = "auto",
    precision: str | None = None,
    quantize: str | None = None,
    mapped: bool = False,
    layout: Layout | None = None,
) -> tuple[GPT, Tokenizer]:
    """Model in eval mode, weights frozen, and its tokenizer.

    Args:
        checkpoint_dir: A folder as Hugging Face publishes it, or one of ours.
        adapter_dir: An adapter made for this checkpoint; it stays unmerged.
        device: `auto` takes CUDA, then MPS, then the CPU. Blocks are spread over several, as in `["cuda:0", "cuda:1"]`.
        precision: `32-true`, `16-true` or `bf16-true`. None: the checkpoint's dtype on an accelerator; float32 on a CPU,
            where bfloat16 is slow without units for it and would make results depend on the CPU's model.
        quantize: One of `lit_llm.model.quantized_linear.QUANTIZATIONS`; applies to the linears inside the blocks.
        mapped: Leave the weights on the CPU, where they may lie in the file, in the dtype that they would have on `device`.
        layout: How linears are laid out for decoding on a CPU in float32.

    Raises:
        FileNotFoundError: if files are missing.
        ValueError: if they do not fit together; the message names the file or tensor.
    """
    devices = [resolve_device(name) for name in ([device] if isinstance(device, str) else device)]
    dtype = weights_dtype(precision, devices[0])
    at_once = layout if adapter_dir is None else None  # an adapter attaches to plain linears
    model = load_model(Path(checkpoint_dir), "cpu" if mapped else devices, dtype, quantize, layout=at_once)
    tokenizer = load_tokenizer(Path(checkpoint_dir), model.config)
    if adapter_dir is not None:
        from lit_llm.adapters import attach_adapter

        attach_adapter(model, Path(adapter_dir))
        if layout is not None:
            lay_out(model, layout)
    return model.eval(), tokenizer


def load_tokenizer(checkpoint_dir: Path, config: Config) -> Tokenizer:
    """Raises ValueError if the tokenizer has ids beyond the embedding's rows; fewer is padding."""
    tokenizer = Tokenizer(checkpoint_dir)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer in {checkpoint_dir} has {tokenizer.vocab_size} ids but the model only {config.vocab_size} rows: "
            "they do not belong together. Copy the tokenizer files of this very checkpoint"
        )
    return tokenizer


def load_model(
    checkpoint_dir: Path,
    device: torch.device | str | Sequence[torch.device] = "cpu",
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
    in_parts: bool = False,
    layout: Layout | None = None,
) -> GPT:
    """GPT with all weights loaded and frozen, on a device or with its blocks spread over several; `fingerprint` is set. Peak
    memory is the model plus one tensor.

    The model is built on the meta device and every memory-mapped tensor takes its place in it, cast or quantized on the way.

    Args:
        in_parts: Load for `sharding.shard`, which moves and casts what a rank holds: weights stay in the mapped file, unless
            `dtype` makes them smaller, and each rank quantizes its own rows onto `device`.
        layout: Lay out the linears, each as it is read.

    Raises:
        ValueError: as `check_layout`.
    """
    config = read_config(checkpoint_dir)
    with torch.device("meta"):
        model = GPT(config)
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
    model.fingerprint = _fill(model, tensors, devices[0], dtype, checkpoint_dir, in_parts, layout == "columns")
    if config.tie_embeddings and isinstance(model.lm_head, nn.Linear):
        model.lm_head.weight = model.wte.weight
    elif config.tie_embeddings:
        model.lm_head.load_weight(model.wte.weight)  # type: ignore[operator]
    for rope in (model.rope, model.local_rope):
        if rope is not None:
            rope.to("cpu" if in_parts else devices[0])
    return model


def read_config(checkpoint_dir: Path) -> Config:
    """Raises FileNotFoundError if the folder does not exist or is none, and as `Config.from_checkpoint`."""
    if not checkpoint_dir.is_dir():
        state = "is a file, not a folder" if checkpoint_dir.exists() else "does not exist"
        raise FileNotFoundError(
            f"--checkpoint_dir {checkpoint_dir} {state}. Download a checkpoint: python scripts/download.py --repo_id ORG/NAME"
        )
    return Config.from_checkpoint(checkpoint_dir)


def _fill(
    model: GPT, tensors: Iterable[tuple[str, Reader]], first: torch.device, dtype: torch.dtype | None, folder: Path,
    in_parts: bool, columns: bool,
) -> str:  # fmt: skip
    """Put every tensor in its place, on the first device if the model has no placement that says more, and return the
    fingerprint. Tells how far it is when that takes long."""
    plain_dtype = None if in_parts and dtype == torch.float32 else dtype
    rows, turned = {}, {f"{name}.weight" for name in linears(model)} if columns else set()
    if columns and model.config.tie_embeddings:
        turned.add("wte.weight")
    copies = columns or any(hasattr(module, "load_weight") for module in model.modules())
    n_tensors, start, progress = len(expected_shapes(model.config)), time.monotonic(), None
    for done, (name, tensor) in enumerate(checked(model.config, tensors, folder)):
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


def checked(config: Config, tensors: Iterable[tuple[str, Reader]], folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Read tensors one by one. Raises ValueError unless they are exactly those of `GPT(config)`, each once, in its shape."""
    expected = expected_shapes(config)
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
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}
    if config.tie_embeddings:
        del shapes["lm_head.weight"]
    return shapes


def _fingerprint(config: Config, rows: dict[str, Tensor]) -> str:
    """sha256 of the config and of the first row of each linear in bfloat16: equal for a folder and its converted twin."""
    default = {name: field.default for name, field in Config.__dataclass_fields__.items()}
    maths = {name: value for name, value in config.to_dict().items() if value != default[name]}
    digest = hashlib.sha256(json.dumps(maths, sort_keys=True).encode())
    for name in sorted(rows):
        digest.update(name.encode())
        digest.update(rows[name].numpy().tobytes())
    return digest.hexdigest()


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


def write_checkpoint(folder: Path | None, model: GPT, source_dir: Path, dtype: torch.dtype | None = None) -> None:
    """Write the model, in `dtype` if one is given, and the companion files of `source_dir` into an existing folder.

    Without a folder, help the rank that writes: it gathers weights that are held in parts one at a time.
    """
    tensors = model.state_dict()
    if model.config.tie_embeddings:
        del tensors["lm_head.weight"]
    gathered = ((name, whole(tensor).cpu()) for name, tensor in tensors.items())
    if folder is None:
        deque(gathered, maxlen=0)
        return
    # Cast one at a time: a cast copy of the whole model would not fit beside it.
    write_shards(((name, tensor.to(dtype or tensor.dtype)) for name, tensor in gathered), folder, LIT_WEIGHTS)
    write_json(folder / LIT_CONFIG, model.config.to_dict())
    copy_companions(source_dir, folder)


def copy_companions(source_dir: Path, folder: Path) -> None:
    """Copy the tokenizer, configurations and licence that travel with weights."""
    for name in COMPANION_FILES:
        if (source_dir / name).is_file():
            shutil.copyfile(source_dir / name, folder / name)


def write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path, name: str, max_bytes: int = 5 * 10**9) -> list[Path]:
    """Write tensors as `name`, or as numbered shards of at most `max_bytes` each and `name.index.json`.

    Holds one shard in memory. Returns the files.
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
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:  # it wraps the operating system's error in its own
        raise OSError(f"cannot write {path}: {error}") from error
    path.chmod(0o644)  # safetensors makes files that only the owner can read
