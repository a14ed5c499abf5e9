"""Time and memory of a finetuning run on GPUs: a model of published rates and counted operations, not a measurement."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from lit_llm.args.measure import EstimateArgs
from lit_llm.methods.method import Method
from lit_llm.model.config import Config


@dataclass(frozen=True)
class GPU:
    """As its vendor publishes it."""

    operations_per_second: float
    """Dense, in bfloat16."""
    memory_bytes: float
    link_bytes_per_second: float
    """To the others of a node, in one direction: NVLink, or PCIe."""


GPUS = {
    "a100-40gb": GPU(312e12, 40e9, 300e9),
    "a100-80gb": GPU(312e12, 80e9, 300e9),
    "h100-80gb": GPU(989e12, 80e9, 450e9),
    "rtx-4090": GPU(165e12, 24e9, 32e9),
}

UTILISATION = 0.4
"""Share of a GPU's operations per second that a well-fed training run is assumed to reach."""

NETWORK_BYTES_PER_SECOND = 25e9
"""Assumed between two nodes, in one direction: one port of 200 Gbit/s for each node."""

USABLE = 0.93
"""Share of a GPU's memory that is left next to the CUDA context and fragments."""


def plan(config: Config, estimated: dict[str, Any], method: Method, args: EstimateArgs) -> dict[str, Any]:
    """Estimate if the run fits, and its tokens per second, for one GPU or, for several, under each strategy.

    Every example is taken to be as long as the longest. The first of two numbers holds if nothing is sent while something is
    computed, the second if everything is.
    """
    assert args.gpu is not None
    gpu, n = GPUS[args.gpu], args.devices * args.num_nodes
    memory = estimated["memory_bytes"]
    tokens_per_second = gpu.operations_per_second * UTILISATION / _operations_per_token(config, estimated, method, args)
    micro_batch_tokens = estimated["micro_batch_tokens"]
    n_micro_batches = math.ceil(args.global_batch_size / args.micro_batch_size)
    assumed: dict[str, Any] = {"utilisation": UTILISATION, "gpu": asdict(gpu)}
    if n == 1:
        found = {
            "fits": memory["total"] < USABLE * gpu.memory_bytes,
            "tokens_per_second": round(tokens_per_second),
            **_in_time(args.hours, tokens_per_second),
        }
        return {"gpu": args.gpu, "hours": args.hours, **found, "assumed": assumed}
    link = min(gpu.link_bytes_per_second, NETWORK_BYTES_PER_SECOND) if args.num_nodes > 1 else gpu.link_bytes_per_second
    waves = math.ceil(n_micro_batches / n)  # micro-batches that a GPU computes one after the other
    share = (n - 1) / n  # of what a ring moves, as seen by each of its members
    held = memory["weights"] + memory["adapter"]
    n_gathered = 2 + method.reference_passes  # forward and backward; by the reference forward alone
    sent = {
        "ddp": 2 * share * memory["gradients"],  # once a step: reduced, and gathered
        "fsdp": waves * share * (n_gathered * held + memory["gradients"]),  # all weights, and gradients reduced
    }
    needed = {"ddp": memory["total"], "fsdp": _sharded(config, memory, method, args)}
    strategies = {}
    refused = args.quantize == "bnb.int8" or args.precision == "16-mixed"  # by finetuning, under fsdp
    for name in ("ddp",) if refused else ("ddp", "fsdp"):
        compute, transfer = waves * micro_batch_tokens / tokens_per_second, sent[name] / link
        speeds = [n_micro_batches * micro_batch_tokens / s for s in (compute + transfer, max(compute, transfer))]
        strategies[name] = {
            "memory_bytes": round(needed[name]),
            "fits": needed[name] < USABLE * gpu.memory_bytes,
            "tokens_per_second": [round(s) for s in speeds],
            "speedup": [round(s / tokens_per_second, 2) for s in speeds],
            **_in_time(args.hours, speeds[0]),
        }
    shape = {"gpu": args.gpu, "devices": args.devices, "num_nodes": args.num_nodes, "hours": args.hours}
    return {**shape, **strategies, "assumed": {**assumed, "slowest_link_bytes_per_second": link}}


def _in_time(hours: float | None, tokens_per_second: float) -> dict[str, int]:
    return {} if hours is None else {"tokens": round(tokens_per_second * hours * 3600)}


def _operations_per_token(config: Config, estimated: dict[str, Any], method: Method, args: EstimateArgs) -> float:
    """2 for each weight forward, 2 for the gradient of what flows through, 2 more for that of the weights."""
    n = estimated["total_params"] - config.vocab_size * config.n_embd * (not config.tie_embeddings)  # looked up
    if config.n_expert:
        idle = config.n_expert - config.n_expert_per_token
        n -= sum(map(config.has_experts, range(config.n_layer))) * idle * 3 * config.n_embd * config.expert_size
    return (4 + 2 * (method.trains_base + args.activation_checkpointing + method.reference_passes)) * n


def _sharded(config: Config, memory: dict[str, int], method: Method, args: EstimateArgs) -> float:
    """Bytes of a GPU under FSDP: its part of all that lasts, what the forward pass holds, and what is whole meanwhile.

    Whole are embeddings and head, and two blocks: the one that computes and the next, which is fetched; of what trains with
    its gradients.
    """
    lasting = memory["weights"] + memory["adapter"] + memory["optimizer"] + memory["gradients"]
    passing = memory["above_model"] - memory["optimizer"] - memory["gradients"]
    width = 2 if args.precision == "bf16-true" and not method.trains_base else 4
    outside = width * config.vocab_size * config.n_embd * (1 if config.tie_embeddings else 2)
    block = (memory["weights"] - outside) / config.n_layer
    whole = outside + 2 * block
    return lasting / (args.devices * args.num_nodes) + passing + whole * (2 if method.trains_base else 1)
