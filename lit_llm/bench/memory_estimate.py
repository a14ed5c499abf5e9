"""Estimated and measured memory of a step above the loaded model, each case in a process of its own (CPU, Linux)."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_llm.args.finetune import TrainArgs
from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.measuring import in_new_process, machine, report, require_linux, table
from lit_llm.bench.peers import Training
from lit_llm.bench.shapes import SHAPES, random_checkpoint
from lit_llm.bench.train_speed import random_example
from lit_llm.checkpoint.read import read_config
from lit_llm.data.batches import collate
from lit_llm.data.examples import Example
from lit_llm.estimation.step_memory import estimate
from lit_llm.memory import peak_above
from lit_llm.methods.adapter import Adapter
from lit_llm.methods.full import Full
from lit_llm.methods.lora import LoRA
from lit_llm.methods.method import Method

TOLERANCE = 0.1
SIZES = {"pythia-70m": (12, 1024), "llama-100m": (4, 1024)}
"""Documents of a micro-batch, and tokens of each."""

CASES: dict[str, tuple[Callable[[], Method], str | None]] = {
    "full": (Full, None),
    "lora": (lambda: LoRA(dropout=0.0), None),
    "qlora": (lambda: LoRA(dropout=0.0), "bnb.nf4"),
    "adapter": (Adapter, None),
}
"""Method, and quantization of the base."""

COLUMNS = {
    "shape": "{shape}", "method": "{method}", "tokens": "{tokens}", "estimated": "{estimated_gb:.3f} GB",
    "measured": "{measured_gb:.3f} GB", "off by": "{off_by:+.1%}",
}  # fmt: skip


def measure(args: BenchmarkArgs) -> None:
    """Print a row for each case. Raises ValueError if an estimate is off by more than 10 %."""
    require_linux("memory_estimate")
    rows = []
    for shape, (n_documents, n_tokens) in SIZES.items():
        with random_checkpoint(SHAPES[shape]) as folder:
            for case in CASES:
                found = in_new_process(compare, str(folder), case, n_documents, n_tokens)
                rows.append({"shape": shape, "method": case, "tokens": f"{n_documents} x {n_tokens}", **found})
                print(json.dumps(rows[-1]), file=sys.stderr)
    report({**machine(), "tolerance": TOLERANCE, "rows": rows}, table(COLUMNS, rows))
    if wrong := [f"{row['method']} on {row['shape']}" for row in rows if abs(row["off_by"]) > TOLERANCE]:
        raise ValueError(f"the estimate is off by more than {TOLERANCE:.0%} for {', '.join(wrong)}")


def compare(folder: str, case: str, n_documents: int, n_tokens: int) -> dict[str, Any]:
    """Return the GB above the loaded model in a step, with the optimizer's state, on one micro-batch with labels everywhere."""
    make_method, quantize = CASES[case]
    method, config = make_method(), read_config(Path(folder))
    found = estimate(config, method, n_documents, n_tokens, False, False, "32-true", quantize)
    training = Training(Path(folder), method, TrainArgs(), quantize)
    for parameter in training.model.parameters():
        parameter.detach().view(torch.uint8).max()  # pages of the file count once they are read
    draw = random.Random(0)

    def example(n: int) -> Example:
        return random_example(n, config.vocab_size, draw, masked=0)

    training.objective(collate([example(8)]))[0].backward()  # code and buffers that the first pass brings in
    training.objective.zero_grad()
    examples = [example(n_tokens) for _ in range(n_documents)]

    def steps() -> None:
        for batch in ([example(8)], examples):  # the first one creates the optimizer's state
            training.step([range(len(batch))], batch)

    measured, estimated = peak_above(steps, torch.device("cpu")), found["memory_bytes"]["above_model"] / 1e9
    return {"estimated_gb": estimated, "measured_gb": measured, "off_by": estimated / measured - 1}
