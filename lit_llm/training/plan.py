"""The lines of `--dry_run` about a run: its steps, tokens, memory, time, weights and folder."""

import time
from datetime import timedelta

import torch

from lit_llm.estimation.advice import estimate_for, terms
from lit_llm.methods.inject import freeze
from lit_llm.model.device import weights_dtype
from lit_llm.model.gpt import GPT
from lit_llm.model.quantized_linear import quantize_linears
from lit_llm.training.loop import Job
from lit_llm.training.summary import summary

_TIMED = 0.2
"""Seconds in which matrix products are timed."""


def plan(job: Job, empty: GPT, device: torch.device) -> str:
    """Return lines to print. The method is attached to `empty`, the model on the meta device.

    Raises:
        ValueError: if the method cannot be attached, or nothing trains.
    """
    args, data, schedule = job.args, job.data, job.schedule
    dtype = weights_dtype(args.precision, device) or torch.float32
    empty.to(dtype)
    if args.quantize is not None:
        quantize_linears(empty, args.quantize)
    with torch.device("meta"):
        job.method.attach(empty)
    freeze(empty, job.method)
    groups = [group for layout in data.first_epoch for share in layout for group in share if group]
    n_epoch, total = len(data.first_epoch), schedule.total_steps
    tokens = sum(data.plan.lengths[i] for group in groups for i in group) / n_epoch
    steps = f"{n_epoch:,} an epoch" if total is None else f"{total:,}, {total / n_epoch:.3g} epochs of {n_epoch:,}"
    limit = f", at most {timedelta(seconds=schedule.max_seconds)}" if args.train.max_time is not None else ""
    rate = _multiplied_per_second(device, dtype)
    n_devices = args.devices * args.num_nodes
    seconds = flops_per_token(empty, args.train.activation_checkpointing) * tokens / rate / n_devices
    in_all = "" if total is None else f", the run {timedelta(seconds=round(seconds * total))}"
    memory = terms(estimate_for(args, empty.config, job.method, data.plan.max_tokens))
    return "\n".join(
        [
            f"steps           {steps}{limit}",
            f"tokens a step   {tokens:,.0f} in {len(groups) / n_epoch:.3g} micro-batches on {n_devices} {device.type}",
            f"time            a step takes {seconds:.2g} s or more{in_all}: {rate / 1e9:,.0f} GFLOP/s in matrix products",
            f"memory          {memory}",
            f"output          {job.folder.path}: {_STATES[job.folder.status]}",
            summary(empty),
        ]
    )


_STATES = {
    "fresh": "a new folder",
    "foreign": "holds files that are not a run. Choose another `out_dir`",
    "started": "a run without a checkpoint, which would start again with `resume` auto",
    "saved": "a run with checkpoints, which would continue with `resume` auto",
    "finished": "a finished run, which would stay as it is with `resume` auto",
}


def flops_per_token(model: GPT, recomputes: bool) -> float:
    """Return the operations of the products with the weights of the blocks, forward and backward, for one token.

    Two for each weight that a token meets, forward and for the gradient of the input, and two more for the gradient of a
    weight that trains. Attention between tokens and the head are ignored.
    """
    config, total = model.config, 0.0
    for name, parameter in model.h.named_parameters():
        if parameter.dim() == 2:
            share = config.n_expert_per_token / config.n_expert if ".experts." in name else 1.0
            total += share * parameter.numel() * (4 + 2 * recomputes + 2 * parameter.requires_grad)
    return total


def _multiplied_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Return operations per second in products of matrices of 1024 rows and columns."""
    n, count = 1024, 0
    a, b = (torch.ones(n, n, device=device, dtype=dtype) for _ in range(2))
    start = time.perf_counter()
    while (seconds := time.perf_counter() - start) < _TIMED or count < 2:
        (a @ b)[0, 0].item()  # waits for a GPU
        count += 1
    return 2 * n**3 * count / seconds
