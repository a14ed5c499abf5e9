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
from lit_llm.devices.layer_placement import Strategy, choose_inference_strategy
from lit_llm.devices.tensor_parallel import join, split
from lit_llm.errors import OptionError
from lit_llm.memory import available_bytes
from lit_llm.methods.lora import merge
from lit_llm.model.config import Config
from lit_llm.model.cpu_linear import Layout, lay_out
from lit_llm.model.device import check_compiler, resolve_device, weights_dtype
from lit_llm.model.gpt import GPT
from lit_llm.text.tokenizer import Tokenizer

Options = GenerateArgs | ModelArgs


def load_args(args: ModelArgs) -> tuple[GPT, Tokenizer, Path]:
    """Load the model that the options name; return it with its tokenizer and folder."""
    checkpoint_dir = args.checkpoint_dir
    if checkpoint_dir is None and args.adapter_dir is not None:
        checkpoint_dir = Path(read_adapter(args.adapter_dir)["base_checkpoint_dir"])
    checkpoint_dir = checkpoint_dir or DEMO / "checkpoint"
    return *load_for_inference(args, checkpoint_dir, args.adapter_dir), checkpoint_dir


def load_for_inference(args: Options, checkpoint_dir: Path, adapter_dir: Path | None) -> tuple[GPT, Tokenizer]:
    """Load a model, lay its weights out for decoding on its devices, and return it with its tokenizer."""
    start, config = time.perf_counter(), read_config(checkpoint_dir)
    if getattr(args, "compile", False):
        check_compiler(resolve_device(args.accelerator), "compile")
    merging = adapter_dir is not None and getattr(args, "merge", False)
    if adapter_dir is not None and merging and (method := read_adapter(adapter_dir)["method"]) != "lora":
        raise OptionError(f"`merge` is for LoRA; {adapter_dir} holds {method}, which cannot be part of the weights. Omit it")
    strategy, devices = _spread(args, config, has_adapter=adapter_dir is not None and not merging)
    layout = _layout(args, config, devices[0]) if strategy is None else None
    names, in_parts = [str(device) for device in devices], strategy == "tensor"
    early = None if merging else layout  # merging adds to the weights, so it comes before the layout
    model, tokenizer = load(checkpoint_dir, adapter_dir, names, args.precision, args.quantize, in_parts, early, merging)
    if merging:
        merge(model)
        if layout is not None:
            lay_out(model, layout)
    if in_parts:
        split(model, devices[0])
    print(f"loaded {checkpoint_dir} on {', '.join(names)} in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return model, tokenizer


def _spread(args: Options, config: Config, has_adapter: bool) -> tuple[Strategy | None, list[torch.device]]:
    """Return how the devices share the model (None: there is one device), and the devices of this process."""
    device = resolve_device(args.accelerator)
    if args.devices == 1:
        return None, [device]
    asked: InferenceStrategy = getattr(args, "strategy", "layers")
    strategy, why = choose_inference_strategy(asked, config, device, args.devices, args.quantize, has_adapter)
    print(f"strategy: {why}", file=sys.stderr)
    if strategy == "tensor":
        return strategy, [join(args.devices, device)]
    return strategy, [torch.device(device.type, i) for i in range(args.devices)]


def _layout(args: Options, config: Config, device: torch.device) -> Layout | None:
    """Return `cpu_weights`; by default columns for float32 on a CPU, if a copy of the mapped weights fits into memory."""
    if args.cpu_weights is not None or device.type != "cpu" or weights_dtype(args.precision, device) != torch.float32:
        return args.cpu_weights
    width = 1 if args.quantize is not None else 4  # bytes of a weight within the blocks, at most
    needed = sum(math.prod(shape) * (width if name.startswith("h.") else 4) for name, shape in expected_shapes(config).items())
    available = available_bytes(device)
    if available is not None and needed > 0.8 * available:
        print("too little memory is free to lay weights out by columns: decoding is slower", file=sys.stderr)
        return None
    return "columns"
