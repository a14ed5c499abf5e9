"""Speed of a LoRA step by the layout of its examples: packed, by length, or padded. One thread, CPU-seconds."""

import random
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.invariance import first_examples
from lit_llm.bench.measuring import machine, ratios, report, summary, table
from lit_llm.bench.peers import Step, lora_training, pad, training_speeds
from lit_llm.bench.train_speed import MICRO_BATCH_SIZE
from lit_llm.data.batches import pack
from lit_llm.data.examples import Example
from lit_llm.errors import DataError
from lit_llm.methods.loss import cross_entropy_sum

LAYOUTS = {
    "packed": "first-fit-decreasing, end to end",
    "bucketed": "micro-batches of equal number, longest first, end to end (--train.packing false)",
    "padded": "micro-batches of equal number in random order, padded on the right",
}
COLUMNS = {
    "layout": "{name}", "tokens per CPU-second": "{tokens_per_cpu_second:.0f} ({spread[0]:.0f} to {spread[1]:.0f})",
    "packed is faster by": "{by:.2f}x",
}  # fmt: skip


def measure(args: BenchmarkArgs) -> None:
    """Print tokens (padding not counted) per CPU-second of each layout."""
    assert args.checkpoint_dir and args.data_dir
    torch.set_num_threads(1)
    n, n_steps = args.n_examples, args.repetitions + 1
    rows_found, _ = first_examples(args.checkpoint_dir, args.data_dir, n_steps * n)
    examples = [example for example in rows_found if isinstance(example, Example)]
    if len(examples) < n_steps * n:
        raise DataError(f"{args.data_dir} has only {len(examples)} examples that fit. Use fewer `repetitions`")
    random.Random(0).shuffle(examples)
    lengths = [len(example) for example in examples]
    steps = layout_steps(args.checkpoint_dir, max(lengths))
    speeds, _ = training_speeds(steps, (examples[i * n : (i + 1) * n] for i in range(n_steps)))
    found = {name: summary("tokens_per_cpu_second", values) for name, values in speeds.items()}
    results = {name: {"layout": LAYOUTS[name], **found[name]} for name in found}
    rows = [{"name": name, "by": median(ratios(speeds["packed"], speeds[name])), **found[name]} for name in found]
    data = {"examples_per_step": n, "mean_tokens": sum(lengths) / len(lengths), "longest": max(lengths)}
    report({**machine(), "data": data, "results": results}, table(COLUMNS, rows))


def layout_steps(checkpoint_dir: Path, longest: int) -> dict[str, Step]:
    """Return an optimizer step for each layout, all on one model."""
    training = lora_training(checkpoint_dir)

    def end_to_end(packing: bool) -> Step:
        def step(examples: Sequence[Example]) -> float:
            lengths = [len(example) for example in examples]
            return training.step(pack(range(len(examples)), lengths, MICRO_BATCH_SIZE, longest, packing), examples)

        return step

    def padded(examples: Sequence[Example]) -> float:
        n_targets, total = sum(example.n_targets for example in examples), 0.0
        for i in range(0, len(examples), MICRO_BATCH_SIZE):
            ids, labels, _ = pad(examples[i : i + MICRO_BATCH_SIZE])
            rows, positions = (labels[:, 1:] != -100).nonzero(as_tuple=True)
            hidden = training.model.hidden(ids)[rows, positions]
            loss = cross_entropy_sum(training.model, hidden, labels[rows, positions + 1]) / n_targets
            training.fabric.backward(loss)
            total += loss.item()
        training.fabric.clip_gradients(training.objective, training.optimizer, max_norm=1.0, error_if_nonfinite=False)
        training.optimizer.step()
        training.optimizer.zero_grad()
        return total

    return {"packed": end_to_end(True), "bucketed": end_to_end(False), "padded": padded}
