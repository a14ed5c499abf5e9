"""A model from the options of a generating script."""

import math
import sys
import time
from pathlib import Path

import torch

from lit_llm.args.base import InferenceStrategy
from lit_llm.args.generate import GenerateArgs, ModelArgs
from lit_llm.checkpoint.adapters import read_adapter
from lit_llm.checkpoint.load import load
from lit_llm.checkpoint.read import expected_shapes, read_config
from lit_llm.cli import DEMO
from lit_llm.devices.layer_placement import choose_inference_strategy
from lit_llm.devices.tensor_parallel import join, split
from lit_llm.memory import available_bytes
from lit_llm.methods.lora import merge
from lit_llm.model.config import Config
from lit_llm.model.cpu_linear import Layout, lay_out
from lit_llm.model.device import resolve_device, weights_dtype
from lit_llm.model.gpt import GPT
from lit_llm.text.tokenizer import Tokenizer


def load_args(args: ModelArgs) -> tuple[GPT, Tokenizer, Path]:
    """The model that the options name, its tokenizer and its folder."""
    checkpoint_dir = args.checkpoint_dir
    if checkpoint_dir is None and args.adapter_dir is not None:
        checkpoint_dir = Path(read_adapter(args.adapter_dir)["base_checkpoint_dir"])
    checkpoint_dir = checkpoint_dir or DEMO / "checkpoint"
    return *load_for_inference(args, checkpoint_dir, args.adapter_dir), checkpoint_dir


def load_for_inference(args: GenerateArgs | ModelArgs, checkpoint_dir: Path, adapter_dir: Path | None) -> tuple[GPT, Tokenizer]:
    """A model whose weights are laid out for decoding on its device, and its tokenizer."""
    device, start, merging = resolve_device(args.accelerator), time.perf_counter(), getattr(args, "merge", False)
    if merging and adapter_dir is not None and (method := read_adapter(adapter_dir)["method"]) != "lora":
        raise ValueError(f"--merge is for LoRA; {adapter_dir} is of {method}, which has no place in the weights. Leave it out")
    strategy, devices = None, [device]
    if args.devices > 1:
        asked: InferenceStrategy = getattr(args, "strategy", "layers")
        unmerged, config = adapter_dir is not None and not merging, read_config(checkpoint_dir)
        strategy, why = choose_inference_strategy(asked, config, device, args.devices, args.quantize, unmerged)
        print(f"strategy: {why}", file=sys.stderr)
    if strategy == "tensor":
        devices = [device := join(args.devices, device)]
    elif strategy == "layers":
        devices = [torch.device(device.type, i) for i in range(args.devices)]
    names = [str(device) for device in devices]
    layout, at_once = _layout(args, read_config(checkpoint_dir), device) if strategy is None else None, not merging
    model, tokenizer = load(
        checkpoint_dir, adapter_dir, names, args.precision, args.quantize, strategy == "tensor", layout if at_once else None
    )
    if merging:
        merge(model)
    if strategy == "tensor":
        split(model, device)
    elif layout is not None and not at_once:
        lay_out(model, layout)
    print(f"loaded {checkpoint_dir} on {', '.join(names)} in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return model, tokenizer


def _layout(args: GenerateArgs | ModelArgs, config: Config, device: torch.device) -> Layout | None:
    """What was asked for; else, for float32 on a CPU, by columns, if what lies in a mapped file can be copied out of it."""
    if args.cpu_weights is not None or device.type != "cpu" or weights_dtype(args.precision, device) != torch.float32:
        return args.cpu_weights
    width = 1 if args.quantize is not None else 4  # bytes of a weight within the blocks, at most
    needed = sum(math.prod(shape) * (width if name.startswith("h.") else 4) for name, shape in expected_shapes(config).items())
    available = available_bytes(device)
    if available is not None and needed > 0.8 * available:
        print("too little memory is free to lay weights out by columns: decoding is slower", file=sys.stderr)
        return None
    return "columns"
