"""Estimated against measured memory of a step above the loaded model, each case in a process of its own (CPU, Linux)."""

import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from lit_llm.args.finetune import TrainArgs
from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.process import in_new_process
from lit_llm.bench.train_speed import SHAPES, machine, make_checkpoint, random_example
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.read import read_config
from lit_llm.data.batches import collate
from lit_llm.data.examples import Example
from lit_llm.estimation.step_memory import estimate
from lit_llm.memory import peak_above
from lit_llm.methods.adapter import Adapter
from lit_llm.methods.full import Full
from lit_llm.methods.lora import LoRA
from lit_llm.methods.loss import next_token_loss
from lit_llm.methods.method import Method
from lit_llm.training.loop import optimizer_step
from lit_llm.training.objective import Objective
from lit_llm.training.optimizers import make_optimizer

TOLERANCE = 0.1
SIZES = {"pythia-70m": (12, 1024), "llama-100m": (4, 1024)}
"""Documents of a micro-batch, and tokens of each."""

CASES: dict[str, tuple[Callable[[], Method], str | None]] = {
    "full": (Full, None),
    "lora": (lambda: LoRA(dropout=0.0), None),
    "qlora": (lambda: LoRA(dropout=0.0), "bnb.nf4"),
    "adapter": (Adapter, None),
}
"""Method, and how the base is quantized."""


def measure(args: BenchmarkArgs) -> None:
    """Print a row for each case as JSON, and a Markdown table. Raises ValueError if an estimate is off by more than 10 %."""
    if sys.platform != "linux":
        raise ValueError("--check memory_estimate reads /proc/self, which only Linux has")
    rows = []
    for shape, (n_documents, n_tokens) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            make_checkpoint(Path(folder), SHAPES[shape])
            for case in CASES:
                found = in_new_process(compare, folder, case, n_documents, n_tokens)
                rows.append({"shape": shape, "method": case, "tokens": f"{n_documents} x {n_tokens}", **found})
                print(json.dumps(rows[-1]), file=sys.stderr)
    print(json.dumps({**machine(), "tolerance": TOLERANCE, "rows": rows}, indent=2))
    lines = ["| shape | method | tokens | estimated | measured | off by |", "|---|---|---|---|---|---|"]
    for row in rows:
        figures = f"{row['estimated_gb']:.3f} GB | {row['measured_gb']:.3f} GB | {row['off_by']:+.1%}"
        lines.append(f"| {row['shape']} | {row['method']} | {row['tokens']} | {figures} |")
    print("\n".join(lines), file=sys.stderr)
    if wrong := [f"{row['method']} on {row['shape']}" for row in rows if abs(row["off_by"]) > TOLERANCE]:
        raise ValueError(f"the estimate is off by more than {TOLERANCE:.0%} for {', '.join(wrong)}")


def compare(name: str, case: str, n_documents: int, n_tokens: int) -> dict[str, Any]:
    """GB above the loaded model in a step, the optimizer's state included, on one micro-batch with labels everywhere."""
    folder, method, quantize = Path(name), CASES[case][0](), CASES[case][1]
    config = read_config(folder)
    found = estimate(config, method, n_documents, n_tokens, False, False, "32-true", quantize)
    model = load_model(folder, dtype=torch.float32, quantize=quantize)
    method.attach(model)
    args = TrainArgs()
    optimizer = make_optimizer(model, method, args, torch.device("cpu"))
    fabric = Fabric(accelerator="cpu", devices=1)
    objective, optimizer = fabric.setup(Objective(model, next_token_loss), optimizer)
    objective.train()
    for parameter in model.parameters():
        parameter.detach().view(torch.uint8).max()  # pages of the file count once they are read
    draw = random.Random(0)

    def example(n: int) -> Example:
        return Example(random_example(n, config.vocab_size, draw).ids, torch.ones(n, dtype=torch.bool))

    objective(collate([example(8)]))[0].backward()  # code and buffers that the first pass brings in
    objective.zero_grad()
    examples = [example(n_tokens) for _ in range(n_documents)]

    def steps() -> None:
        for batch in ([example(8)], examples):  # the first one makes the optimizer's state
            optimizer_step(fabric, objective, optimizer, [range(len(batch))], batch, args.learning_rate, args.max_norm)

    measured, estimated = peak_above(steps, torch.device("cpu")), found["memory_bytes"]["above_model"] / 1e9
    return {"estimated_gb": estimated, "measured_gb": measured, "off_by": estimated / measured - 1}
