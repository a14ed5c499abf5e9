"""The checks of `eval/benchmark.py`; JSON on stdout."""

import json
import platform
import sys

import torch

from lit_llm.args import BenchmarkArgs


def train_speed(args: BenchmarkArgs) -> None:
    from lit_llm.speed import as_markdown, compare_speed, settings

    torch.set_num_threads(1)
    results = {}
    for shape in args.shapes:
        results[shape] = compare_speed(shape, args.repetitions, args.n_examples)
        print(as_markdown({shape: results[shape]}), file=sys.stderr)
    about = {"torch": torch.__version__, "python": platform.python_version(), "processor": _processor()}
    print(json.dumps({**about, "settings": settings(), "results": results}, indent=2))
    print(f"\n{as_markdown(results)}", file=sys.stderr)


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.processor())
