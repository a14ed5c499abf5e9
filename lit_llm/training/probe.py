"""Before a run: its longest micro-batch, really made. After memory ran out: what would have helped, and by how much."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from lit_llm.data.batches import StepPlan, collate
from lit_llm.data.examples import Example, Pair
from lit_llm.memory import peak_above, peak_memory_gb
from lit_llm.ranks import n_ranks
from lit_llm.training.objective import Objective
from lit_llm.training.out_of_memory import naming_the_batch

if TYPE_CHECKING:
    from lightning.fabric import Fabric

ESTIMATE_FROM = 0.25
"""GB above the model: below that a step has no question of memory, and an estimate takes seconds."""


def probe(
    fabric: "Fabric",
    objective: Objective,
    plan: StepPlan,
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
