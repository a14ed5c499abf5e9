"""Every method of finetuning on the embedded demo, each by its script in a process of its own, as a user runs it."""

import csv
import json
import math
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.train_speed import machine

FINETUNE = Path(__file__).parents[2] / "finetune"
# Title -> script and what differs from its recipe for the demo, which is a file in lit_llm/demo.
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
    "LLaMA-Adapter": ("adapter", {}),
    "LLaMA-Adapter V2": ("adapter_v2", {}),
    "DPO": ("dpo", {}),
}


def measure(args: BenchmarkArgs) -> None:
    results = {}
    for title, (script, options) in RUNS.items():
        results[title] = run(script, options)
        print(f"{title}: {results[title]}", file=sys.stderr)
    print(json.dumps({**machine(), "runs": results}, indent=2))
    print(f"\n{as_markdown(results)}", file=sys.stderr)


def run(script: str, options: dict[str, Any]) -> dict[str, Any]:
    """Finetune the demo and read what came of it off the run folder and the last lines that the script prints."""
    with tempfile.TemporaryDirectory() as name:
        out_dir = Path(name) / "run"
        flags = [f"--{flag}={value}" for flag, value in {**options, "out_dir": out_dir}.items()]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, str(FINETUNE / f"{script}.py"), *flags]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        with (out_dir / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        exact = re.findall(r"(\d+)/(\d+)", next(s for s in done.stdout.splitlines() if s.startswith("exact match")))
        base, finetuned = (int(right) / int(asked) for right, asked in exact)
        return {
            "trained": _trained(out_dir, options.get("full.trainable")),
            "steps": int(rows[-1]["step"]),
            "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "peak_memory_gb": max(float(row["peak_memory_gb"]) for row in rows if row["peak_memory_gb"]),
            "validation_loss": float(next(row["val_loss"] for row in reversed(rows) if row["val_loss"])),
            "exact_match_base": base,
            "exact_match": finetuned,
        }


def _trained(out_dir: Path, part: str | None) -> int:
    """Parameters that the result holds, of a full finetuning those below `part`."""
    from safetensors import safe_open

    adapter = out_dir / "final" / "adapter.safetensors"
    path = adapter if adapter.is_file() else out_dir / "final" / "lit_model.safetensors"
    with safe_open(path, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    if part is not None:
        shapes = {name: shape for name, shape in shapes.items() if name.startswith(tuple(f"{p}." for p in part.split(",")))}
    return sum(map(math.prod, shapes.values()))


def as_markdown(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| method | trained parameters | steps | CPU-seconds | peak memory | validation loss | exact match |"]
    lines.append("|---|---|---|---|---|---|---|")
    for title, r in results.items():
        lines.append(
            f"| {title} | {r['trained']:,} | {r['steps']} | {r['cpu_seconds']:.0f} | {r['peak_memory_gb']:.2f} GB | "
            f"{r['validation_loss']:.4f} | {r['exact_match']:.1%} |"
        )
    return "\n".join(lines)
