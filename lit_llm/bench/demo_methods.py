"""Every finetuning method on the embedded demo, each run by its script in a process of its own, as a user runs it."""

import csv
import math
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.measuring import machine, report, table

FINETUNE = Path(__file__).parents[2] / "finetune"
# Title -> script, and the options that differ from its recipe for the demo (a file in lit_llm/demo).
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "full, last block and norm": ("full", {"full.trainable": "h.3,norm", "train.learning_rate": 0.003}),
    "LoRA, r 8, all linears": ("lora", {}),
    "LoRA, r 16, q and v": ("lora", {"lora.r": 16, "lora.alpha": 32, "lora.targets": "q,v", "train.learning_rate": 0.008}),
    "rsLoRA, r 8, all linears": ("lora", {"lora.use_rslora": True, "lora.alpha": 5.66}),
    "DoRA, r 8, all linears": ("lora", {"lora.use_dora": True}),
    "QLoRA nf4": ("lora", {"quantize": "bnb.nf4"}),
    "QLoRA nf4-dq": ("lora", {"quantize": "bnb.nf4-dq"}),
    "QLoRA fp4": ("lora", {"quantize": "bnb.fp4"}),
    "QLoRA int8": ("lora", {"quantize": "bnb.int8"}),
    "IA3": ("ia3", {}),
    "LLaMA-Adapter": ("adapter", {}),
    "LLaMA-Adapter V2": ("adapter_v2", {}),
    "DPO": ("dpo", {}),
}
COLUMNS = {
    "method": "{title}", "trained parameters": "{trained:,}", "steps": "{steps}", "CPU-seconds": "{cpu_seconds:.0f}",
    "peak memory": "{peak_memory_gb:.2f} GB", "validation loss": "{validation_loss:.4f}", "exact match": "{exact_match:.1%}",
}  # fmt: skip


def measure(args: BenchmarkArgs) -> None:
    results = {}
    for title, (script, options) in RUNS.items():
        results[title] = run(script, options)
        print(f"{title}: {results[title]}", file=sys.stderr)
    rows = [{"title": title, **found} for title, found in results.items()]
    report({**machine(), "runs": results}, table(COLUMNS, rows))


def run(script: str, options: dict[str, Any]) -> dict[str, Any]:
    """Finetune the demo, and read the results from the run folder and from the last lines that the script prints."""
    with tempfile.TemporaryDirectory() as name:
        out_dir = Path(name) / "run"
        flags = [f"--{flag}={value}" for flag, value in {**options, "out_dir": out_dir}.items()]
        before = _children_seconds()
        command = [sys.executable, str(FINETUNE / f"{script}.py"), *flags]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds = _children_seconds() - before
        with (out_dir / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        exact = re.findall(r"(\d+)/(\d+)", next(s for s in done.stdout.splitlines() if s.startswith("exact match")))
        base, finetuned = (int(right) / int(asked) for right, asked in exact)
        return {
            "trained": _trained(out_dir / "final", options.get("full.trainable")),
            "steps": int(rows[-1]["step"]),
            "cpu_seconds": seconds,
            "peak_memory_gb": max(float(row["peak_memory_gb"]) for row in rows if row["peak_memory_gb"]),
            "validation_loss": float(next(row["val_loss"] for row in reversed(rows) if row["val_loss"])),
            "exact_match_base": base,
            "exact_match": finetuned,
        }


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _trained(final: Path, part: str | None) -> int:
    """Return the number of parameters in the result; of a full finetuning only those below `part`."""
    from safetensors import safe_open

    adapter = final / "adapter.safetensors"
    with safe_open(adapter if adapter.is_file() else final / "lit_model.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    below = tuple(f"{name}." for name in part.split(",")) if part else ""
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(below))
