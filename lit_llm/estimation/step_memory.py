"""Memory of a finetuning run, by term, from the config alone.

The model is built and one step is made with tensors that have shapes but no values; what is alive at each moment is counted.
"""

import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_llm.args.measure import EstimateArgs
from lit_llm.checkpoint.prequantized import stored_quantization
from lit_llm.checkpoint.read import empty_model, read_config
from lit_llm.checkpoint.upstream_linears import with_our_targets
from lit_llm.data.batches import MicroBatch
from lit_llm.estimation.gpu_plan import plan
from lit_llm.methods.inject import freeze
from lit_llm.methods.method import Method
from lit_llm.methods.registry import build_method
from lit_llm.model.config import Config
from lit_llm.model.gpt import GPT
from lit_llm.model.kv_cache import KVCache

BITS = {"bnb.nf4": 4.5, "bnb.nf4-dq": 4.127, "bnb.fp4": 4.5, "bnb.fp4-dq": 4.127, "bnb.int8": 8.0}
"""Per weight, scales included: one float32 for each 64 weights of 4 bits, or one byte and a float32 for each 256 of those."""


class _Alive(TorchDispatchMode):
    """Counts the bytes of all storages made while it is on, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage not in self._seen and id(storage) not in inputs:
                    self._seen.add(storage)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, storage.nbytes())
        return out

    def _free(self, n_bytes: int) -> None:
        self.now -= n_bytes


def estimate_run(args: EstimateArgs) -> dict[str, Any]:
    """Return the estimate that `scripts/estimate.py` prints."""
    config = read_config(args.checkpoint_dir)
    method = build_method(with_our_targets(args, empty_model(config)))
    if args.quantize is None and not method.trains_base:
        args = replace(args, quantize=stored_quantization(args.checkpoint_dir))
    longest = min(args.max_seq_length or 2048, config.block_size)
    micro_batch_size = min(args.micro_batch_size, args.global_batch_size)
    sharded = args.devices * args.num_nodes > 1  # gradients then last from one micro-batch to the next
    accumulates = args.global_batch_size > micro_batch_size or sharded
    found = estimate(
        config, method, micro_batch_size, longest, accumulates, args.activation_checkpointing, args.precision, args.quantize
    )
    n_tokens = micro_batch_size * longest * method.documents_per_example
    found = {"method": args.method, "micro_batch_tokens": n_tokens, **found}
    if args.gpu is not None:
        found["plan"] = plan(config, found, method, args)
    return found


def estimate(
    config: Config,
    method: Method,
    micro_batch_size: int,
    max_seq_length: int,
    accumulates: bool,
    activation_checkpointing: bool,
    precision: str,
    quantize: str | None,
) -> dict[str, Any]:
    """Parameters, and bytes of memory at the longest micro-batch, all of whose tokens have a label.

    Args:
        accumulates: The step has several micro-batches, so gradients and activations exist at the same time.
        precision: A `*-mixed` one holds float32 and multiplies in half precision, as `bf16-true` does where the base trains.
        quantize: Linears of the blocks are held in the bits that it names.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    half = torch.float16 if precision == "16-mixed" else torch.bfloat16
    held = half if precision.endswith("-true") and precision != "32-true" else torch.float32
    multiplied = half if precision.endswith("-mixed") or (held == half and method.trains_base) else None
    model = _attached(config, method, held)
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    n_total = sum(p.numel() for p in model.parameters())
    in_blocks = [
        m.weight.numel() for name, m in model.h.named_modules() if isinstance(m, nn.Linear) and not name.endswith("router")
    ]
    if config.n_expert:
        model = _attached(_without_router(config), method, held)
    model.activation_checkpointing = activation_checkpointing
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", multiplied, enabled=multiplied is not None):
        _without_values(model)
        step = _simulate(model, method, micro_batch_size, max_seq_length, 2 if accumulates else 1)
    n_quantized = sum(in_blocks) if quantize else 0
    n_frozen = n_total - n_trained
    weights = int((n_frozen - n_quantized) * held.itemsize + n_quantized * (BITS[quantize] / 8 if quantize else 0))
    memory = {
        "weights": weights + (4 * n_trained if method.trains_base else 0),
        "adapter": 0 if method.trains_base else 4 * n_trained,
        "gradients": 4 * n_trained,
        "optimizer": 8 * n_trained,
        **step,
    }
    memory["above_model"] = memory["optimizer"] + memory.pop("peak")
    memory["total"] = memory["weights"] + memory["adapter"] + memory["above_model"]
    return {
        "total_params": n_total,
        "trainable_params": n_trained,
        "memory_bytes": memory,
        "kv_cache_bytes_per_sequence": KVCache(config, 1, max_seq_length, "meta", held).n_bytes(),
    }


def _attached(config: Config, method: Method, dtype: torch.dtype) -> GPT:
    """The model with what the method adds, without memory behind it."""
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = GPT(config)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        method.attach(model)
    freeze(model, method)
    return model


def _without_router(config: Config) -> Config:
    """One MLP as wide as the experts of a token together: which they are depends on values, how much memory they take not."""
    size = config.expert_size * config.n_expert_per_token + config.shared_expert_size
    return replace(config, n_expert=0, intermediate_size=size)


def _without_values(model: GPT) -> None:
    """Parameters that claim to be on the CPU, so that operations are those of a device, but hold nothing."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            empty = torch.empty(p.shape, dtype=p.dtype, device="cpu")
            setattr(module, name, made.setdefault(id(p), nn.Parameter(empty, requires_grad=p.requires_grad)))


def _simulate(model: GPT, method: Method, micro_batch_size: int, max_seq_length: int, n_micro_batches: int) -> dict[str, int]:
    """Bytes alive at the end of a forward pass through the blocks, of a chunk of logits, and at the peak of a step."""
    lengths = (max_seq_length,) * (micro_batch_size * method.documents_per_example)
    n = sum(lengths)
    model.train()
    with _Alive() as alive:
        batch = MicroBatch(torch.zeros(1, n, dtype=torch.long), lengths, torch.arange(n - 1), torch.zeros(n - 1).long(), n)
        hidden = model.hidden(batch.ids, lengths)
        activations = alive.now
        del hidden
        alive.peak = 0
        for _ in range(n_micro_batches):
            total, _ = method.loss(model, batch)
            total.backward()
            del total
        peak = alive.peak
    return {"activations": activations, "logits_chunk": _logits_chunk(model, n - 1), "peak": peak}


def _logits_chunk(model: GPT, n_labels: int) -> int:
    from lit_llm.methods.loss import CHUNK_LOGITS

    rows = min(max(1, CHUNK_LOGITS // model.config.vocab_size), n_labels)
    return 4 * rows * model.config.vocab_size


STATE_BYTES: dict[str, float] = {
    "adamw": 8, "paged_adamw": 8, "adamw8bit": 2.04, "paged_adamw8bit": 2.04, "lion": 4, "paged_lion": 4, "lion8bit": 1.02,
    "paged_lion8bit": 1.02, "sgd": 4, "adafactor": 0,
}  # fmt: skip
"""State for each trained parameter; 8 bits come with one float32 for each 256 of them, adafactor keeps a row and a column."""
