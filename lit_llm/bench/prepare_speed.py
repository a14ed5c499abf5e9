"""Speed and memory of preparing data: rows curated and written, rows tokenized into the cache, and the cache found again.

The tokenizer is the embedded demo's: time and memory of all else do not depend on it.
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from lit_llm.args.data import PrepareJsonArgs
from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.process import in_new_process
from lit_llm.bench.train_speed import machine
from lit_llm.cli import DEMO
from lit_llm.data.prepare import prepare_table
from lit_llm.data.token_cache import examples_of
from lit_llm.memory import peak_above
from lit_llm.text.tokenizer import Tokenizer

WORDS = 60
"""Of a row's answer; its instruction has 15."""


def measure(args: BenchmarkArgs) -> None:
    """Print figures for `n_examples` rows, and for half as many: memory must grow by an index alone."""
    results = {}
    for n in (args.n_examples // 2, args.n_examples):
        with tempfile.TemporaryDirectory() as name:
            write_rows(Path(name) / "rows.jsonl", n)
            results[n] = {step: in_new_process(run, name, step) for step in STEPS}
    half, whole = results.values()
    growth = {
        step: (whole[step]["peak_mb"] - half[step]["peak_mb"]) * 1e6 / (args.n_examples - args.n_examples // 2)
        for step in STEPS
    }
    print(json.dumps({**machine(), "rows": whole, "bytes_per_further_row": growth}, indent=2))
    for step, found in whole.items():
        cells = [step, f"{found['cpu_seconds']:.1f}", f"{found['peak_mb']:.0f} MB", f"{growth[step]:.0f} bytes"]
        print("| " + " | ".join(cells) + " |", file=sys.stderr)


def write_rows(path: Path, n: int) -> None:
    """JSON lines of instruction rows, no two alike."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            row = {
                "instruction": " ".join([*draw.choices(words, k=14), str(i)]),
                "output": " ".join(draw.choices(words, k=WORDS)),
            }
            file.write(json.dumps(row) + "\n")


def curate(folder: Path) -> int:
    """`prepare_json.py`. Returns rows."""
    source = folder / "rows.jsonl"
    prepare_table(PrepareJsonArgs(json_path=str(source), destination_path=folder / "data"), str(source), source)
    return sum(json.loads((folder / "data" / "meta.json").read_text())["rows"].values())


def tokenize(folder: Path) -> int:
    """Tokens of the rows to train on, from their cache if it is there. Returns tokens."""
    examples = examples_of(folder / "data" / "train.jsonl", "alpaca", Tokenizer(DEMO / "checkpoint"))
    return sum(len(examples[i]) for i in range(len(examples)))


STEPS = {"curate": curate, "prepare again": curate, "tokenize": tokenize, "read the cache": tokenize}
"""In this order, each in a process of its own."""


def run(folder: str, step: str) -> dict[str, float]:
    """CPU-seconds of a step, what it made in each of them, and by how much this process grows at most (Linux)."""
    made: list[int] = []
    start = time.process_time()
    peak = peak_above(lambda: made.append(STEPS[step](Path(folder))), torch.device("cpu"))
    seconds = time.process_time() - start
    return {"cpu_seconds": seconds, "made": made[0], "per_cpu_second": made[0] / seconds, "peak_mb": 1000 * peak}
