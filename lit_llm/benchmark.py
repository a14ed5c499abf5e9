"""The checks of `eval/benchmark.py`; JSON on stdout."""

import json
import platform
import sys

import torch

from lit_llm.args.measure import BenchmarkArgs


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


def invariance(args: BenchmarkArgs) -> None:
    """Raises ValueError if loss or gradient differ between layouts by more than the rounding of float32."""
    from lit_llm.checkpoint import load_model, load_tokenizer, read_config
    from lit_llm.data import Example, read_records, tokenize_all
    from lit_llm.invariance import TOLERANCE, attach_moving_lora, check_layouts

    assert args.checkpoint_dir and args.data_dir
    config = read_config(args.checkpoint_dir)
    tokenizer = load_tokenizer(args.checkpoint_dir, config)
    records = read_records(args.data_dir / "train.jsonl")[: args.n_examples]
    found, _ = tokenize_all(records, "alpaca", tokenizer, True, config.block_size)
    examples = [example for example in found if isinstance(example, Example)]
    if not examples:
        raise ValueError(f"none of the first {args.n_examples} rows of {args.data_dir} fits the context, or all are pairs")
    model = load_model(args.checkpoint_dir, dtype=torch.float32)
    attach_moving_lora(model)
    layouts = check_layouts(model, examples)
    worst = max(max(row["loss_difference"], row["gradient_difference"]) for row in layouts)
    result = {"examples": len(examples), "equal": worst < TOLERANCE, "tolerance": TOLERANCE, "layouts": layouts}
    print(json.dumps(result, indent=2))
    if worst >= TOLERANCE:
        raise ValueError(f"loss or gradient depend on the layout: the largest relative difference is {worst:.1e}")


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.processor())
