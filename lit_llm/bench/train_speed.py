"""Training speed and memory of one LoRA step beside its peers: ragged examples, one thread, CPU-seconds."""

import json
import platform
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.peers import Contender, contenders
from lit_llm.bench.process import in_new_process
from lit_llm.data.examples import Example
from lit_llm.memory import peak_above

MICRO_BATCH_SIZE = 4
LONGEST = 512
MASKED = 0.7
SHAPES: dict[str, dict[str, Any]] = {
    "pythia-70m": {
        "model_type": "gpt_neox", "vocab_size": 50304, "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
        "intermediate_size": 2048, "max_position_embeddings": 2048,
    },
    "llama-6x512": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
        "intermediate_size": 1376, "max_position_embeddings": 2048,
    },
    "llama-100m": {  # 14 % of its weights are the head
        "model_type": "llama", "vocab_size": 18176, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 2048, "max_position_embeddings": 2048, "tie_word_embeddings": True,
    },
}  # fmt: skip


def measure(args: BenchmarkArgs) -> None:
    torch.set_num_threads(1)
    results = {}
    for shape in args.shapes:
        results[shape] = compare_speed(shape, args.repetitions, args.n_examples)
        print(as_markdown({shape: results[shape]}), file=sys.stderr)
    print(json.dumps({**machine(), "settings": settings(), "results": results}, indent=2))
    print(f"\n{as_markdown(results)}", file=sys.stderr)


def ragged_examples(n: int, vocab_size: int, seed: int) -> list[Example]:
    """Random tokens; lengths are lognormal between 20 and 512, and the first 70 % of each are masked."""
    draw = random.Random(seed)
    lengths = [round(min(max(draw.lognormvariate(4.8, 0.8), 20), LONGEST)) for _ in range(n)]
    return [random_example(length, vocab_size, draw) for length in lengths]


def random_example(length: int, vocab_size: int, draw: random.Random) -> Example:
    ids = torch.tensor([draw.randrange(vocab_size) for _ in range(length)], dtype=torch.int32)
    return Example(ids, torch.arange(length) >= round(length * MASKED))


def make_checkpoint(folder: Path, shape: dict[str, Any]) -> None:
    """A Hugging Face folder with random weights of a shape."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {name: value for name, value in shape.items() if name != "model_type"}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(shape["model_type"], **sizes)).save_pretrained(folder)


def compare_speed(shape: str, repetitions: int, n_examples: int) -> dict[str, Any]:
    """Non-padding tokens per CPU-second of each contender, in interleaved repetitions on the same examples."""
    with tempfile.TemporaryDirectory() as name:
        make_checkpoint(Path(name), SHAPES[shape])
        steps = {c.name: c.build(Path(name), MICRO_BATCH_SIZE) for c in contenders()}
        speeds: dict[str, list[float]] = {name: [] for name in steps}
        first_losses = {}
        for repetition in range(repetitions + 1):  # the first one warms up
            examples = ragged_examples(n_examples, SHAPES[shape]["vocab_size"], seed=repetition)
            for name_, step in steps.items():
                start = time.process_time()
                loss = step(examples)
                seconds = time.process_time() - start
                if repetition == 0:
                    first_losses[name_] = loss
                else:
                    speeds[name_].append(sum(map(len, examples)) / seconds)
        memory = {c.name: in_new_process(step_memory, name, c.name) for c in contenders()}
    ours = speeds["lit_llm"]
    result = {
        name: {
            "tokens_per_cpu_second": median(values),
            "spread": [min(values), max(values)],
            "first_loss": first_losses[name],
            "step_memory_gb": memory[name],
        }
        for name, values in speeds.items()
    }
    ratios = {
        name: {
            "speed": median(a / b for a, b in zip(ours, values, strict=True)),
            "spread": [
                min(a / b for a, b in zip(ours, values, strict=True)),
                max(a / b for a, b in zip(ours, values, strict=True)),
            ],
            "memory": memory["lit_llm"] / memory[name],
        }
        for name, values in speeds.items()
        if name != "lit_llm"
    }
    return {"contenders": result, "lit_llm_over_peer": ratios}


def step_memory(folder: str, name: str) -> float:
    """GB above the loaded model at the peak of a step of 4 x 512 tokens, in this fresh process (Linux)."""
    contender: Contender = next(c for c in contenders() if c.name == name)
    step = contender.build(Path(folder), MICRO_BATCH_SIZE)
    draw, vocab_size = random.Random(0), _vocab_size(Path(folder))
    step([random_example(8, vocab_size, draw)])  # pages in the weights, and makes the optimizer's state
    examples = [random_example(LONGEST, vocab_size, draw) for _ in range(MICRO_BATCH_SIZE)]
    return peak_above(lambda: step(examples), torch.device("cpu"))


def _vocab_size(folder: Path) -> int:
    from lit_llm.checkpoint.read import read_config

    return read_config(folder).vocab_size


def machine() -> dict[str, str]:
    """What figures of a benchmark depend on besides the check."""
    return {"torch": torch.__version__, "python": platform.python_version(), "processor": _processor()}


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.processor())


def settings() -> dict[str, Any]:
    """What the figures depend on besides the shape."""
    return {
        "method": "LoRA r=8 on q and v (peft on gpt_neox: query_key_value), no dropout, float32, one thread, AdamW",
        "data": f"lognormal lengths 20..{LONGEST}, {MASKED:.0%} masked, micro-batches of {MICRO_BATCH_SIZE}",
        "memory": f"peak above the loaded model in a step of {MICRO_BATCH_SIZE} x {LONGEST} tokens",
        **{c.name: c.settings for c in contenders()},
    }


def as_markdown(results: dict[str, dict[str, Any]]) -> str:
    """A table of the results by shape."""
    head = ["shape", "", "tokens per CPU-second", "lit_llm is faster by", "step memory", "lit_llm needs"]
    lines: list[Sequence[str]] = [head, ["---"] * len(head)]
    for shape, result in results.items():
        for name, found in result["contenders"].items():
            ratio = result["lit_llm_over_peer"].get(name)
            speed = f"{ratio['speed']:.2f}x ({ratio['spread'][0]:.2f} to {ratio['spread'][1]:.2f})" if ratio else ""
            memory = f"{ratio['memory']:.2f}x" if ratio else ""
            low, high = found["spread"]
            per_second = f"{found['tokens_per_cpu_second']:.0f} ({low:.0f} to {high:.0f})"
            lines.append([shape, name, per_second, speed, f"{found['step_memory_gb']:.2f} GB", memory])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
