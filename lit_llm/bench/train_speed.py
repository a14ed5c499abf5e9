"""Training speed and memory of one LoRA step, compared with peers: ragged examples, one thread, CPU-seconds."""

import random
import sys
from pathlib import Path
from typing import Any

import torch

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.measuring import in_new_process, machine, ratios, report, summary, table
from lit_llm.bench.peers import contenders, training_speeds
from lit_llm.bench.shapes import SHAPES, Shape, random_checkpoint
from lit_llm.checkpoint.read import read_config
from lit_llm.data.examples import Example
from lit_llm.memory import peak_above

MICRO_BATCH_SIZE = 4
LONGEST = 512
MASKED = 0.7
COLUMNS = {
    "shape": "{shape}", "": "{name}",
    "tokens per CPU-second": "{tokens_per_cpu_second:.0f} ({spread[0]:.0f} to {spread[1]:.0f})",
    "lit_llm is faster by": "{faster}", "step memory": "{step_memory_gb:.2f} GB", "lit_llm needs": "{needs}",
}  # fmt: skip
OVER_PEER = {"faster": "{speed:.2f}x ({spread[0]:.2f} to {spread[1]:.2f})", "needs": "{memory:.2f}x"}


def measure(args: BenchmarkArgs) -> None:
    torch.set_num_threads(1)
    results = {}
    for shape in args.shapes:
        results[shape] = compare_speed(SHAPES[shape], args.repetitions, args.n_examples)
        print(as_markdown({shape: results[shape]}), file=sys.stderr)
    settings = {
        "method": "LoRA r=8 on q and v (peft on gpt_neox: query_key_value), no dropout, float32, one thread, AdamW",
        "data": f"lognormal lengths 20..{LONGEST}, {MASKED:.0%} masked, micro-batches of {MICRO_BATCH_SIZE}",
        "memory": f"peak above the loaded model in a step of {MICRO_BATCH_SIZE} x {LONGEST} tokens",
        **{name: contender.settings for name, contender in contenders().items()},
    }
    report({**machine(), "settings": settings, "results": results}, as_markdown(results))


def ragged_examples(n: int, vocab_size: int, seed: int) -> list[Example]:
    """Draw random tokens; lengths are lognormal between 20 and 512, and the first 70 % of each example are masked."""
    draw = random.Random(seed)
    lengths = [round(min(max(draw.lognormvariate(4.8, 0.8), 20), LONGEST)) for _ in range(n)]
    return [random_example(length, vocab_size, draw) for length in lengths]


def random_example(length: int, vocab_size: int, draw: random.Random, masked: float = MASKED) -> Example:
    ids = torch.tensor([draw.randrange(vocab_size) for _ in range(length)], dtype=torch.int32)
    return Example(ids, torch.arange(length) >= round(length * masked))


def compare_speed(shape: Shape, repetitions: int, n_examples: int) -> dict[str, Any]:
    """Return non-padding tokens per CPU-second and memory of each contender, and how they compare with ours."""
    with random_checkpoint(shape) as folder:
        steps = {name: c.build(folder, MICRO_BATCH_SIZE) for name, c in contenders().items()}
        drawn = (ragged_examples(n_examples, shape["vocab_size"], seed) for seed in range(repetitions + 1))
        speeds, first_losses = training_speeds(steps, drawn)
        memory = {name: in_new_process(step_memory, str(folder), name) for name in steps}
    found, faster = {}, {}
    for name, values in speeds.items():
        measured = {"first_loss": first_losses[name], "step_memory_gb": memory[name]}
        found[name] = {**summary("tokens_per_cpu_second", values), **measured}
        if name != "lit_llm":
            by = summary("speed", ratios(speeds["lit_llm"], values))
            faster[name] = {**by, "memory": memory["lit_llm"] / memory[name]}
    return {"contenders": found, "lit_llm_over_peer": faster}


def step_memory(folder: str, name: str) -> float:
    """Return the GB above the loaded model at the peak of a step of 4 x 512 tokens in this fresh process (Linux)."""
    step = contenders()[name].build(Path(folder), MICRO_BATCH_SIZE)
    draw, vocab_size = random.Random(0), read_config(Path(folder)).vocab_size
    step([random_example(8, vocab_size, draw)])  # pages in the weights, and creates the optimizer's state
    examples = [random_example(LONGEST, vocab_size, draw) for _ in range(MICRO_BATCH_SIZE)]
    return peak_above(lambda: step(examples), torch.device("cpu"))


def as_markdown(results: dict[str, dict[str, Any]]) -> str:
    rows = []
    for shape, result in results.items():
        for name, found in result["contenders"].items():
            over = result["lit_llm_over_peer"].get(name)
            compared = {key: form.format_map(over) if over else "" for key, form in OVER_PEER.items()}
            rows.append({"shape": shape, "name": name, **found, **compared})
    return table(COLUMNS, rows)
