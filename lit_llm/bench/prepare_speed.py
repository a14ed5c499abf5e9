"""Speed and memory of preparing data: curate and write rows, tokenize them into the cache, and find the cache again.

The tokenizer is the embedded demo's; time and memory of all other work do not depend on it.
"""

import json
import random
import tempfile
import time
from pathlib import Path

import torch

from lit_llm.args.data import PrepareJsonArgs
from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.measuring import in_new_process, machine, report, table
from lit_llm.cli import DEMO
from lit_llm.data.prepare import prepare_table
from lit_llm.data.token_cache import examples_of
from lit_llm.memory import peak_above
from lit_llm.text.tokenizer import Tokenizer

N_WORDS = 60
"""Words of an answer; an instruction has 15."""

COLUMNS = {
    "step": "{step}", "CPU-seconds": "{cpu_seconds:.1f}", "memory": "{peak_mb:.0f} MB", "each further row": "{growth:.0f} bytes"
}  # fmt: skip


def measure(args: BenchmarkArgs) -> None:
    """Print figures for `n_examples` rows, and for half of them: memory must grow by an index alone."""
    results, n_half = {}, args.n_examples // 2
    for n in (n_half, args.n_examples):
        with tempfile.TemporaryDirectory() as name:
            write_rows(Path(name) / "rows.jsonl", n)
            results[n] = {step: in_new_process(run, name, step) for step in STEPS}
    half, whole = results.values()
    n_further = args.n_examples - n_half
    growth = {step: (whole[step]["peak_mb"] - half[step]["peak_mb"]) * 1e6 / n_further for step in STEPS}
    rows = [{"step": step, "growth": growth[step], **found} for step, found in whole.items()]
    report({**machine(), "rows": whole, "bytes_per_further_row": growth}, table(COLUMNS, rows))


def write_rows(path: Path, n: int) -> None:
    """Write JSON lines of instruction rows that all differ."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            instruction = " ".join([*draw.choices(words, k=14), str(i)])
            row = {"instruction": instruction, "output": " ".join(draw.choices(words, k=N_WORDS))}
            file.write(json.dumps(row) + "\n")


def curate(folder: Path) -> int:
    """Run the work of `prepare_json.py` and return the number of rows."""
    source = folder / "rows.jsonl"
    prepare_table(PrepareJsonArgs(json_path=str(source), destination_path=folder / "data"))
    return sum(json.loads((folder / "data" / "meta.json").read_text())["rows"].values())


def tokenize(folder: Path) -> int:
    """Tokenize the training rows, or read their cache, and return the number of tokens."""
    examples = examples_of(folder / "data" / "train.jsonl", "alpaca", Tokenizer(DEMO / "checkpoint"))
    return sum(len(examples[i]) for i in range(len(examples)))


STEPS = {"curate": curate, "prepare again": curate, "tokenize": tokenize, "read the cache": tokenize}
"""In this order, each in a process of its own."""


def run(folder: str, step: str) -> dict[str, float]:
    """Return the CPU-seconds of a step, its rows or tokens, those per second, and the peak growth of this process (Linux)."""
    made: list[int] = []
    start = time.process_time()
    peak = peak_above(lambda: made.append(STEPS[step](Path(folder))), torch.device("cpu"))
    seconds = time.process_time() - start
    return {"cpu_seconds": seconds, "made": made[0], "per_cpu_second": made[0] / seconds, "peak_mb": 1000 * peak}
