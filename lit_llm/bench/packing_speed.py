"""Speed of a LoRA step by the layout of its examples: packed, by length, or padded in their order. One thread, CPU-seconds."""

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from lightning.fabric import Fabric

from lit_llm.args.finetune import TrainArgs
from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.invariance import first_examples
from lit_llm.bench.peers import ALPHA, LEARNING_RATE, R, pad
from lit_llm.bench.train_speed import MICRO_BATCH_SIZE, machine
from lit_llm.checkpoint.load_model import load_model
from lit_llm.data.batches import pack
from lit_llm.data.examples import Example
from lit_llm.methods.lora import LoRA
from lit_llm.methods.loss import cross_entropy_sum, next_token_loss
from lit_llm.training.loop import optimizer_step
from lit_llm.training.objective import Objective
from lit_llm.training.optimizers import make_optimizer

LAYOUTS = {
    "packed": "first-fit-decreasing, end to end",
    "bucketed": "micro-batches of equal number, longest first, end to end (--train.packing false)",
    "padded": "micro-batches of equal number in random order, padded on the right",
}


def measure(args: BenchmarkArgs) -> None:
    """Print tokens (padding not counted) per CPU-second of each layout, in interleaved repetitions on the same examples."""
    assert args.checkpoint_dir and args.data_dir
    torch.set_num_threads(1)
    found, _ = first_examples(args.checkpoint_dir, args.data_dir, (args.repetitions + 1) * args.n_examples)
    examples = [example for example in found if isinstance(example, Example)]
    if len(examples) < (args.repetitions + 1) * args.n_examples:
        raise ValueError(f"{args.data_dir} has {len(examples)} examples that fit: too few. Take fewer --repetitions")
    random.Random(0).shuffle(examples)
    model, method = load_model(args.checkpoint_dir, dtype=torch.float32), LoRA(R, ALPHA, dropout=0.0)
    method.attach(model)
    optimizer = make_optimizer(model, method, TrainArgs(learning_rate=LEARNING_RATE), torch.device("cpu"))
    fabric = Fabric(accelerator="cpu", devices=1)
    objective, optimizer = fabric.setup(Objective(model, next_token_loss), optimizer)
    objective.train()

    def end_to_end(packing: bool) -> Callable[[Sequence[Example]], None]:
        def step(chosen: Sequence[Example]) -> None:
            lengths = [len(example) for example in chosen]
            groups = pack(range(len(chosen)), lengths, MICRO_BATCH_SIZE, max(map(len, examples)), packing)
            optimizer_step(fabric, objective, optimizer, groups, chosen, LEARNING_RATE, 1.0)

        return step

    def padded(chosen: Sequence[Example]) -> None:
        n_targets = sum(example.n_targets for example in chosen)
        for i in range(0, len(chosen), MICRO_BATCH_SIZE):
            ids, labels, _ = pad(chosen[i : i + MICRO_BATCH_SIZE])
            rows, positions = (labels[:, 1:] != -100).nonzero(as_tuple=True)
            hidden = model.hidden(ids)[rows, positions]
            fabric.backward(cross_entropy_sum(model, hidden, labels[rows, positions + 1]) / n_targets)
        fabric.clip_gradients(objective, optimizer, max_norm=1.0, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()

    steps = {"packed": end_to_end(True), "bucketed": end_to_end(False), "padded": padded}
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(args.repetitions + 1):  # the first one warms up
        chosen = examples[repetition * args.n_examples : (repetition + 1) * args.n_examples]
        for name, step in steps.items():
            start = time.process_time()
            step(chosen)
            if repetition:
                speeds[name].append(sum(map(len, chosen)) / (time.process_time() - start))
    results = {
        name: {"layout": LAYOUTS[name], "tokens_per_cpu_second": median(values), "spread": [min(values), max(values)]}
        for name, values in speeds.items()
    }
    lengths = [len(example) for example in examples]
    data = {"examples_per_step": args.n_examples, "mean_tokens": sum(lengths) / len(lengths), "longest": max(lengths)}
    print(json.dumps({**machine(), "data": data, "results": results}, indent=2))
    for name, values in speeds.items():
        ratio = median(a / b for a, b in zip(speeds["packed"], values, strict=True))
        print(f"| {name} | {median(values):.0f} ({min(values):.0f} to {max(values):.0f}) | {ratio:.2f}x |", file=sys.stderr)
