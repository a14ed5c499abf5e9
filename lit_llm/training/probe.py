"""The longest micro-batch of a run, computed once before it, for its time and memory."""

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from lit_llm.data.batches import collate
from lit_llm.memory import peak_above, peak_memory_gb
from lit_llm.ranks import n_ranks
from lit_llm.training.objective import Objective
from lit_llm.training.out_of_memory import naming_the_batch
from lit_llm.training.run_data import RunData

if TYPE_CHECKING:
    from lightning.fabric import Fabric

ESTIMATE_FROM = 0.25
"""GB above the model: a smaller step needs no estimate of its memory, which takes seconds."""


def probe(
    fabric: "Fabric", objective: Objective, data: RunData, total_steps: int | None, compiled: bool = False
) -> tuple[str, float]:  # fmt: skip
    """Run forward and backward pass of the longest micro-batch of the first epoch; twice, if the first pass compiles.

    Weights, optimizer, gradients and random numbers are afterwards as before. Returns a line to print, and the GB of the step
    above the model.

    Raises:
        OutOfMemoryError: if it does not fit.
    """
    lengths = data.plan.lengths
    groups = [group for layout in data.first_epoch for share in layout for group in share]
    longest = max(groups, key=lambda group: sum(lengths[i] for i in group))
    batch = collate([data.examples[i] for i in longest]).to(fabric.device)
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
    n_tokens = sum(lengths[i] for group in groups for i in group)
    per_step = seconds / batch.ids.size(1) * n_tokens / data.plan.steps_per_epoch / n_ranks()
    in_all = "" if total_steps is None else f", the {total_steps} of the run {timedelta(seconds=round(per_step * total_steps))}"
    text = (
        f"longest micro-batch: {batch.ids.size(1):,} tokens, {_plain(seconds)} s, {max(above, 0):.2f} GB above the model "
        f"({peak_memory_gb(fabric.device):.2f} GB in all). A step takes about {_plain(per_step)} s{in_all}"
    )
    return text, above


def _plain(seconds: float) -> str:
    """Two digits, or all before the point."""
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"
