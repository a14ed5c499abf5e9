"""Prefill and greedy decoding beside transformers' `generate` and litgpt's: same random weights, one thread, CPU-seconds. On
CUDA instead: what share of the memory's bandwidth a 7B shape in bfloat16 reaches."""

import importlib.util
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.peers import litgpt_config, litgpt_weights
from lit_llm.bench.process import in_new_process
from lit_llm.bench.train_speed import SHAPES, machine, make_checkpoint
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
DECODED: dict[str, dict[str, Any]] = {
    "pythia-70m": SHAPES["pythia-70m"],
    "llama-260m": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16,
        "intermediate_size": 2816, "max_position_embeddings": 2048,
    },
}  # fmt: skip
LLAMA_2_7B = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "intermediate_size": 11008, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
}  # fmt: skip

Decode = Callable[[Tensor, int], list[list[int]]]
"""From prompts (B, T) and a number of tokens to that many new tokens for each."""


class _NoText:
    """Stands where a tokenizer is needed: nothing ends a text, and no contender makes any."""

    def decode_more(self, ids: Sequence[int]) -> str:
        return ""

    def token_bytes(self, i: int, before: Sequence[int]) -> bytes:
        return b""


def _ours(folder: Path, layout: Layout) -> Decode:
    model = load_model(folder, dtype=torch.float32, layout=layout)
    return lambda prompts, n_new: decode(model, prompts.tolist(), n_new)


def decode(model: GPT, prompts: Sequence[list[int]], n_new: int, compile: bool = False) -> list[list[int]]:
    """New tokens of each prompt, as the generate scripts make them."""
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
    """litgpt/generate/base.py, its batched generation included."""
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
    """This package, with weights in 32, 16 and 8 bits, and the peers that are installed."""
    found: dict[str, Callable[[Path], Decode]] = {
        "lit_llm": lambda folder: _ours(folder, "columns"),
        "lit_llm fp16": lambda folder: _ours(folder, "fp16"),
        "lit_llm int8": lambda folder: _ours(folder, "int8"),
    }
    if importlib.util.find_spec("transformers"):
        found["transformers"] = _transformers
    if importlib.util.find_spec("litgpt"):
        found["litgpt"] = _litgpt
    return found


def measure(args: BenchmarkArgs) -> None:
    """Print results as JSON, and a Markdown table on stderr. Raises ValueError if float32 tokens differ between contenders."""
    if torch.cuda.is_available():
        shares = bandwidth_share(Config.from_hf(LLAMA_2_7B), torch.device("cuda"), torch.bfloat16)
        print(json.dumps({**machine(), "device": torch.cuda.get_device_name(), **shares}, indent=2))
        return
    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    results = {}
    for shape in DECODED:
        results[shape] = compare(DECODED[shape], args.repetitions)
        print(as_markdown({shape: results[shape]}), file=sys.stderr)
    print(json.dumps({**machine(), "prompt": N_PROMPT, "new_tokens": N_NEW, "results": results}, indent=2))


def compare(shape: dict[str, Any], repetitions: int) -> dict[str, Any]:
    """Tokens per CPU-second by batch size and contender, in interleaved repetitions; and memory by contender."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder, shape)
        runs = {name: build(folder) for name, build in contenders().items()}
        for size in BATCH_SIZES:
            prompts = torch.randint(5, shape["vocab_size"], (size, N_PROMPT), generator=torch.Generator().manual_seed(size))
            tokens = {name: run(prompts, 8) for name, run in runs.items()}  # warms up
            wrong = [n for n in tokens if n not in ("lit_llm fp16", "lit_llm int8") and tokens[n] != tokens["lit_llm"]]
            if wrong:
                raise ValueError(f"{wrong[0]} continues prompts otherwise than lit_llm: they do not compute the same model")
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
            for _ in range(repetitions):
                for name, run in runs.items():
                    first, all_ = _seconds(run, prompts, 1), _seconds(run, prompts, 1 + N_NEW)
                    times[name].append((first, all_ - first))
            found[f"batch {size}"] = {
                name: {
                    "prefill": size * N_PROMPT / median(first for first, _ in values),
                    "decode": size * N_NEW / median(rest for _, rest in values),
                    "decode_spread": [size * N_NEW / f(rest for _, rest in values) for f in (max, min)],
                }
                for name, values in times.items()
            }
        del runs
        return {
            "tokens_per_cpu_second": found,
            "memory_mb": {name: in_new_process(peak_mb, str(folder), name) for name in tokens},
        }


def _seconds(run: Decode, prompts: Tensor, n_new: int) -> float:
    start = time.process_time()
    run(prompts, n_new)
    return time.process_time() - start


def peak_mb(folder: str, name: str) -> float:
    """MB by which this process grows at most while it loads a contender's model and continues 8 prompts (Linux)."""
    build = contenders()[name]
    return 1000 * peak_above(lambda: build(Path(folder))(torch.full((8, N_PROMPT), 7), N_NEW), torch.device("cpu"))


def as_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Tables of the results by shape and batch size. In brackets: how many times as fast as each peer."""
    lines = [
        "| shape | batch | | decode, tokens per CPU-second | prefill | times as fast as peers | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape, result in results.items():
        for batch, by_name in result["tokens_per_cpu_second"].items():
            peers = [name for name in by_name if not name.startswith("lit_llm")]
            for name, speed in by_name.items():
                ratios = ", ".join(f"{speed['decode'] / by_name[p]['decode']:.2f}x {p}" for p in peers if name not in peers)
                low, high = speed["decode_spread"]
                memory = f"{result['memory_mb'][name]:.0f} MB" if batch == f"batch {BATCH_SIZES[-1]}" else ""
                cells = [shape, batch.removeprefix("batch "), name, f"{speed['decode']:.1f} ({low:.1f} to {high:.1f})"]
                lines.append("| " + " | ".join([*cells, f"{speed['prefill']:.0f}", ratios, memory]) + " |")
    return "\n".join(lines)


@torch.inference_mode()
def bandwidth_share(config: Config, device: torch.device, dtype: torch.dtype, n_new: int = 256) -> dict[str, float]:
    """Decoding with `--compile` at batch 1 by random weights, beside what reading the weights and the keys and values allows.

    The limit is the bandwidth of a copy on this device over the bytes that a token reads.
    """
    with torch.device("meta"):
        model = GPT(config).to(dtype)
    rope = model.rope
    model.rope = None
    model.to_empty(device=device)
    model.rope = None if rope is None else rope.to(device)
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    prompt = [list(range(5, 5 + N_PROMPT))]
    decode(model.eval(), prompt, 8, compile=True)  # compiles
    seconds = {}
    for n in (1, 1 + n_new):
        decode(model, prompt, n, compile=True)
        seconds[n] = _wall(lambda n=n: decode(model, prompt, n, compile=True), device)
    per_second = n_new / (seconds[1 + n_new] - seconds[1])
    weights = sum(p.nbytes for p in model.parameters()) - model.wte.weight.nbytes  # of the embedding one row is read
    cache = Batch[Row](model, 1, N_PROMPT + 1 + n_new).cache.n_bytes()
    source = torch.empty(2**28 if device.type == "cuda" else 2**24, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = min(_wall(lambda: target.copy_(source), device) for _ in range(10))
    bandwidth = 2 * source.nbytes / copy
    return {
        "tokens_per_second": per_second, "bandwidth_gb_per_second": bandwidth / 1e9,
        "gb_per_token": (weights + cache) / 1e9, "share_of_limit": per_second * (weights + cache) / bandwidth,
    }  # fmt: skip


def _wall(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
