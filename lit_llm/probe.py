"""Before a run: its longest micro-batch, really made. After memory ran out: what would have helped, and by how much."""

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from lit_llm.args.finetune import FinetuneArgs
from lit_llm.data.batches import Plan, collate
from lit_llm.data.examples import Example, Pair
from lit_llm.estimate import estimate
from lit_llm.memory import naming_the_batch, peak_above, peak_memory_gb
from lit_llm.methods.dpo import DPO
from lit_llm.methods.inject import Method
from lit_llm.model.config import Config
from lit_llm.optimizers import STATE_BYTES
from lit_llm.ranks import n_ranks
from lit_llm.train import Objective

if TYPE_CHECKING:
    from lightning.fabric import Fabric

ESTIMATE_FROM = 0.25
"""GB above the model: below that a step has no question of memory, and an estimate takes seconds."""


def probe(
    fabric: "Fabric",
    objective: Objective,
    plan: Plan,
    examples: Sequence[Example | Pair],
    total_steps: int | None,
    compiled: bool = False,
) -> tuple[str, float]:
    """Forward and backward pass of the longest micro-batch of the first epoch; the second one, where the first compiles.

    Weights, optimizer, gradients and random numbers are afterwards as before. Returns what to tell, and the GB that the step
    took above the model.

    Raises:
        OutOfMemoryError: if it does not fit.
    """
    dealt = (share for step in range(plan.steps_per_epoch) for share in plan.deal(plan.examples(step), n_ranks()))
    groups = [group for share in dealt for group in share]
    batch = collate([examples[i] for i in max(groups, key=lambda g: sum(plan.lengths[i] for i in g))]).to(fabric.device)
    cuda = [fabric.device] if fabric.device.type == "cuda" else []
    seconds = 0.0

    def step() -> None:
        nonlocal seconds
        start = time.monotonic()
        with naming_the_batch(batch):
            loss, _ = objective(batch)
            fabric.backward(loss / batch.n_targets)
        loss.item()  # waits for the GPU
        seconds = time.monotonic() - start

    objective.train()
    with torch.random.fork_rng(cuda):
        if compiled:
            step()
            objective.zero_grad()
        above = peak_above(step, fabric.device)
    objective.zero_grad()
    per_step = seconds / batch.ids.size(1) * sum(plan.lengths) / plan.steps_per_epoch / n_ranks()
    in_all = "" if total_steps is None else f", the {total_steps} of the run {timedelta(seconds=round(per_step * total_steps))}"
    text = (
        f"longest micro-batch: {batch.ids.size(1):,} tokens, {_plain(seconds)} s, {max(above, 0):.2f} GB above the model "
        f"({peak_memory_gb(fabric.device):.2f} GB in all). A step takes about {_plain(per_step)} s{in_all}"
    )
    return text, above


def _plain(seconds: float) -> str:
    """Two digits, or all before the point."""
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"


def estimate_for(args: FinetuneArgs, config: Config, method: Method, max_tokens: int) -> dict[str, int]:
    """Bytes by term of the run that `args` ask for, at micro-batches of `micro_batch_size` x `max_tokens`."""
    max_tokens = max_tokens // 2 if isinstance(method, DPO) else max_tokens  # of a document; a pair has two
    sizes = args.train.micro_batch_size, args.train.global_batch_size
    assert args.precision
    found = estimate(
        config, method, min(sizes), max_tokens, sizes[1] > sizes[0], args.train.activation_checkpointing, args.precision,
        args.quantize,
    )  # fmt: skip
    memory = dict(found["memory_bytes"])
    state = int(STATE_BYTES[args.train.optimizer] * found["trainable_params"])
    for term in ("above_model", "total"):
        memory[term] += state - memory["optimizer"]
    return {**memory, "optimizer": state}


def terms(memory: dict[str, int]) -> str:
    """One line: GB by term."""
    return "estimate in GB: " + ", ".join(f"{name.replace('_', ' ')} {n / 1e9:.2f}" for name, n in memory.items())


def explain(args: FinetuneArgs, config: Config, method: Method, max_tokens: int, where: str) -> str:
    """What to tell when a micro-batch did not fit: the largest term, and which options would save how much."""
    memory = estimate_for(args, config, method, max_tokens)
    largest = max(("weights", "adapter", "gradients", "optimizer", "activations"), key=lambda name: memory[name])
    lines = [
        f"out of memory in a micro-batch of {where}",
        f"{terms(memory)}; the largest is {largest}",
    ]
    ways: list[tuple[str, FinetuneArgs, int]] = []
    half = args.train.micro_batch_size // 2
    if half:
        fewer = replace(args, train=replace(args.train, micro_batch_size=half))
        ways.append((f"--train.micro_batch_size {half}", fewer, max_tokens))
    if not args.train.activation_checkpointing:
        recomputed = replace(args, train=replace(args.train, activation_checkpointing=True))
        ways.append(("--train.activation_checkpointing", recomputed, max_tokens))
    if args.quantize is None and args.method != "full":
        ways.append(("--quantize bnb.nf4", replace(args, quantize="bnb.nf4"), max_tokens))
    ways.append((f"--max_seq_length {max_tokens // 2} (longer examples are left out)", args, max_tokens // 2))
    for flag, other, longest in ways:
        saved = memory["total"] - estimate_for(other, config, method, longest)["total"]
        if saved > 0:
            lines.append(f"{flag} would save {saved / 1e9:.2f} GB")
    return "\n".join(lines)
