"""Prefill and greedy decoding compared with transformers and litgpt: same random weights, one thread, CPU-seconds.

On CUDA instead: the share of the memory bandwidth that decoding of a 7B shape in bfloat16 reaches.
"""

import importlib.util
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.measuring import cpu_seconds, in_new_process, in_turn, machine, report, table
from lit_llm.bench.peers import litgpt_config, litgpt_weights
from lit_llm.bench.shapes import SHAPES, Shape, random_checkpoint, shape
from lit_llm.checkpoint.load_model import load_model
from lit_llm.generation.decode import Batch, Row, continue_rows
from lit_llm.generation.sampling import Sampling
from lit_llm.memory import peak_above
from lit_llm.model.config import Config
from lit_llm.model.cpu_linear import Layout
from lit_llm.model.gpt import GPT
from lit_llm.text.ending import Ending

N_PROMPT, N_NEW = 128, 64
BATCH_SIZES = (1, 8)
DECODED = {"pythia-70m": SHAPES["pythia-70m"], "llama-260m": shape("llama", 32000, 1024, 16, 16, 2816)}
LLAMA_2_7B = shape("llama", 32000, 4096, 32, 32, 11008, max_position_embeddings=4096, rms_norm_eps=1e-5)
LAYOUTS: dict[str, Layout] = {"lit_llm": "columns", "lit_llm fp16": "fp16", "lit_llm int8": "int8"}
COLUMNS = {
    "shape": "{shape}", "batch": "{size}", "": "{name}",
    "decode, tokens per CPU-second": "{decode:.1f} ({decode_spread[0]:.1f} to {decode_spread[1]:.1f})",
    "prefill": "{prefill:.0f}", "times as fast as peers": "{faster}", "memory": "{memory}",
}  # fmt: skip

Decode = Callable[[Tensor, int], list[list[int]]]
"""From prompts (B, T) and a number of tokens to that many new tokens for each prompt."""


class _NoText:
    """A tokenizer without EOS and strings: nothing ends an answer, and no contender makes text."""

    def decode_more(self, ids: Sequence[int]) -> str:
        return ""

    def token_bytes(self, i: int, before: Sequence[int]) -> bytes:
        return b""


def _ours(layout: Layout) -> Callable[[Path], Decode]:
    def build(folder: Path) -> Decode:
        model = load_model(folder, dtype=torch.float32, layout=layout)
        return lambda prompts, n_new: decode(model, prompts.tolist(), n_new)

    return build


def decode(model: GPT, prompts: Sequence[list[int]], n_new: int, compile: bool = False) -> list[list[int]]:
    """Return new tokens of each prompt, made as the generate scripts make them."""
    rows = [Row(_NoText(), prompt, n_new, Sampling(temperature=0.0), Ending()) for prompt in prompts]  # type: ignore[arg-type]
    batch = Batch[Row](model, len(rows), max(map(len, prompts)) + n_new, compile=compile)
    for _ in continue_rows(batch, rows):
        pass
    return [row.ids[row.n_prompt :] for row in rows]


def _transformers(folder: Path) -> Decode:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None

    def run(prompts: Tensor, n_new: int) -> list[list[int]]:
        how = {"max_new_tokens": n_new, "do_sample": False, "pad_token_id": 0}
        return model.generate(prompts, attention_mask=torch.ones_like(prompts), **how)[:, prompts.size(1) :].tolist()

    return run


def _litgpt(folder: Path) -> Decode:
    """litgpt/generate/base.py, including its batched generation."""
    from litgpt import model as peer  # type: ignore[import-not-found]
    from litgpt.generate.base import batched_generate_fn, generate_fn  # type: ignore[import-not-found]

    model = peer.GPT(litgpt_config(folder))
    model.load_state_dict(litgpt_weights(model, folder))
    model.eval()

    @torch.inference_mode()
    def run(prompts: Tensor, n_new: int) -> list[list[int]]:
        total = prompts.size(1) + n_new
        model.max_seq_length = total
        model.set_kv_cache(batch_size=len(prompts), max_seq_length=total, device=torch.device("cpu"))
        how = {"max_returned_tokens": total, "include_prompt": False, "include_eos": True}
        if len(prompts) == 1:
            found = [[int(t) for t in generate_fn(model, prompts[0], temperature=0.0, **how)]]
        else:
            steps = list(batched_generate_fn(model, prompts, sample_args={"temperature": 0.0}, **how))
            found = [[int(step[i]) for step in steps] for i in range(len(prompts))]
        model.clear_kv_cache()
        return found

    return run


def contenders() -> dict[str, Callable[[Path], Decode]]:
    """Return this package, with weights in 32, 16 and 8 bits, and the peers that are installed."""
    peers = {"transformers": _transformers, "litgpt": _litgpt}
    installed = {name: build for name, build in peers.items() if importlib.util.find_spec(name)}
    return {name: _ours(layout) for name, layout in LAYOUTS.items()} | installed


def measure(args: BenchmarkArgs) -> None:
    """Print the results. Raises ValueError if float32 tokens differ between contenders."""
    if torch.cuda.is_available():
        shares = bandwidth_share(Config.from_hf(LLAMA_2_7B), torch.device("cuda"), torch.bfloat16)
        return report({**machine(), "device": torch.cuda.get_device_name(), **shares})
    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    results = {}
    for name, fields in DECODED.items():
        results[name] = compare(fields, args.repetitions)
        print(as_markdown({name: results[name]}), file=sys.stderr)
    report({**machine(), "prompt": N_PROMPT, "new_tokens": N_NEW, "results": results})


def compare(fields: Shape, repetitions: int) -> dict[str, Any]:
    """Return tokens per CPU-second by batch size and contender, measured in turn, and memory by contender."""
    with random_checkpoint(fields) as folder:
        runs = {name: build(folder) for name, build in contenders().items()}
        speeds = {f"batch {size}": _compare_batch(runs, size, fields["vocab_size"], repetitions) for size in BATCH_SIZES}
        names = list(runs)
        del runs  # the processes below need the memory
        memory = {name: in_new_process(peak_mb, str(folder), name) for name in names}
    return {"tokens_per_cpu_second": speeds, "memory_mb": memory}


def _compare_batch(runs: dict[str, Decode], size: int, vocab_size: int, repetitions: int) -> dict[str, Any]:
    prompts = torch.randint(5, vocab_size, (size, N_PROMPT), generator=torch.Generator().manual_seed(size))
    tokens = {name: run(prompts, 8) for name, run in runs.items()}  # warms up
    exact = [name for name in runs if LAYOUTS.get(name, "columns") == "columns"]
    if wrong := [name for name in exact if tokens[name] != tokens["lit_llm"]]:
        raise ValueError(f"{wrong[0]} continues prompts differently than lit_llm: they do not compute the same model")

    def speeds(run: Decode) -> tuple[float, float]:
        first, whole = cpu_seconds(run, prompts, 1), cpu_seconds(run, prompts, 1 + N_NEW)
        return size * N_PROMPT / first, size * N_NEW / (whole - first)

    measured = in_turn({name: partial(speeds, run) for name, run in runs.items()}, repetitions)
    found = {}
    for name, values in measured.items():
        prefill, decode = zip(*values, strict=True)
        found[name] = {"prefill": median(prefill), "decode": median(decode), "decode_spread": [min(decode), max(decode)]}
    return found


def peak_mb(folder: str, name: str) -> float:
    """Return the MB by which this process grows while it loads a contender's model and continues 8 prompts (Linux)."""
    build = contenders()[name]
    return 1000 * peak_above(lambda: build(Path(folder))(torch.full((8, N_PROMPT), 7), N_NEW), torch.device("cpu"))


def as_markdown(results: dict[str, dict[str, Any]]) -> str:
    rows = []
    for shape_name, result in results.items():
        for batch, speeds in result["tokens_per_cpu_second"].items():
            peers = [name for name in speeds if name not in LAYOUTS]
            for name, speed in speeds.items():
                faster = ", ".join(f"{speed['decode'] / speeds[p]['decode']:.2f}x {p}" for p in peers if name in LAYOUTS)
                memory = f"{result['memory_mb'][name]:.0f} MB" if batch == f"batch {BATCH_SIZES[-1]}" else ""
                size = batch.removeprefix("batch ")
                rows.append({"shape": shape_name, "size": size, "name": name, "faster": faster, "memory": memory, **speed})
    return table(COLUMNS, rows)


@torch.inference_mode()
def bandwidth_share(config: Config, device: torch.device, dtype: torch.dtype, n_new: int = 256) -> dict[str, float]:
    """Compare compiled decoding of random weights at batch 1 with the limit that the memory bandwidth sets.

    Every token reads all weights and the keys and values, so that tokens per second <= bandwidth / (bytes of both). The
    bandwidth is that of a copy on this device.
    """
    with torch.device("meta"):
        model = GPT(config).to(dtype)
    rope = model.rope
    model.rope = None
    model.to_empty(device=device)
    model.rope = None if rope is None else rope.to(device)
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    model.eval()

    def seconds(n: int) -> float:
        def run() -> object:
            return decode(model, [list(range(5, 5 + N_PROMPT))], n, compile=True)

        run()  # compiles
        return _wall(run, device)

    prefill, whole = seconds(1), seconds(1 + n_new)
    per_second = n_new / (whole - prefill)
    weights = sum(p.nbytes for p in model.parameters()) - model.wte.weight.nbytes  # of the embedding one row is read
    cache = Batch[Row](model, 1, N_PROMPT + 1 + n_new).cache.n_bytes()
    source = torch.empty(2**28 if device.type == "cuda" else 2**24, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / min(_wall(lambda: target.copy_(source), device) for _ in range(10))
    return {
        "tokens_per_second": per_second, "bandwidth_gb_per_second": bandwidth / 1e9,
        "gb_per_token": (weights + cache) / 1e9, "share_of_limit": per_second * (weights + cache) / bandwidth,
    }  # fmt: skip


def _wall(run: Callable[[], object], device: torch.device) -> float:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    run()
    return now() - start
