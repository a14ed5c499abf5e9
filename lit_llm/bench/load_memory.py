"""The most memory that loading a checkpoint takes, each case measured in a process of its own."""

import json
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.tensor_names import to_hf
from lit_llm.checkpoint.write import write_shards
from lit_llm.files import write_json
from lit_llm.model.config import Config
from lit_llm.model.cpu_linear import PackedLinear
from lit_llm.model.gpt import GPT

SHARD_BYTES = 500 * 10**6
# What `load_model` is asked for, and the aim, if there is one: at most this factor of the loaded weights, and so many MB.
CASES: dict[str, tuple[dict[str, Any], float | None, int]] = {
    "as stored": ({}, 1.1, 0),
    "float32": ({"dtype": torch.float32}, 1.1, 0),
    "bnb.nf4": ({"dtype": torch.bfloat16, "quantize": "bnb.nf4"}, 1.3, 100),
    "fp16 for a CPU": ({"dtype": torch.float32, "layout": "fp16"}, None, 0),
    "int8 for a CPU": ({"dtype": torch.float32, "layout": "int8"}, None, 0),
}


def measure(args: BenchmarkArgs) -> None:
    """Print results as JSON, and a Markdown table. Memory is that beyond what the process held before, in MB (10^6 bytes)."""
    if sys.platform != "linux":
        raise ValueError("--check load_memory reads /proc/self/status, which only Linux has")
    with tempfile.TemporaryDirectory() as folder:
        n_weights = _make_checkpoint(Path(folder), 16)
        command = [sys.executable, "-m", "lit_llm.bench.load_memory", folder]
        done = {name: subprocess.run([*command, name], check=True, stdout=subprocess.PIPE, text=True).stdout for name in CASES}
    cases = {name: json.loads(text) for name, text in done.items()}
    lines = ["| loaded as | weights MB | peak MB | of it anonymous | aim MB | seconds | met |", "|---|---|---|---|---|---|---|"]
    for name, case in cases.items():
        keys = ("weights_mb", "peak_mb", "peak_anonymous_mb", "aim_mb", "seconds")
        figures = ("" if case[key] is None else f"{case[key]:.0f}" for key in keys)
        lines.append(f"| {name} | {' | '.join(figures)} | { {None: '', True: 'yes', False: 'no'}[case['met']] } |")
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    results = {"check": "load_memory", "n_weights": n_weights, **machine, "cases": cases}
    print(json.dumps(results, indent=2))
    print("\n".join(lines), file=sys.stderr)


def _make_checkpoint(folder: Path, n_layer: int) -> int:
    """Write random bfloat16 weights in the shape of a Llama as Hugging Face publishes it; return their number."""
    hf = {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": n_layer,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    write_json(folder / "config.json", hf)
    config = Config.from_hf(hf)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}
    readers = {
        name: lambda shape=shape: torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02) for name, shape in shapes.items()
    }
    write_shards(to_hf(config, readers), folder, "model.safetensors", SHARD_BYTES)
    return sum(shape.numel() for shape in shapes.values())


class _Peak(threading.Thread):
    """Samples the memory of this process until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stopped = threading.Event()
        self.before = _memory()
        self.total = self.anonymous = 0.0

    def run(self) -> None:
        while not self.stopped.wait(0.005):
            memory = _memory()
            self.total = max(self.total, sum(memory.values()) - sum(self.before.values()))
            self.anonymous = max(self.anonymous, memory["RssAnon"] - self.before["RssAnon"])


def _memory() -> dict[str, float]:
    """Resident MB of this process: anonymous, and mapped from files, which the system can drop and read again."""
    status = Path("/proc/self/status").read_text()
    return {kind: int(size) * 1024 / 1e6 for kind, size in re.findall(r"^(RssAnon|RssFile|RssShmem):\s+(\d+) kB", status, re.M)}


def _measure(folder: Path, name: str) -> dict[str, Any]:
    """Load in this process, which has done nothing else."""
    options, factor, more = CASES[name]
    if "quantize" in options:
        import bitsandbytes  # noqa: F401  (its own size is not that of the model)
    peak, start = _Peak(), time.perf_counter()
    peak.start()
    model = load_model(folder, **options)
    seconds = time.perf_counter() - start
    for parameter in model.parameters():
        parameter.view(torch.uint8).view(-1)[::4096].sum()  # weights that are mapped come into memory on use
    peak.stopped.set()
    peak.join()
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    n_bytes = sum(m.in_features * m.out_features * (2 if m.kind == "fp16" else 1) for m in packed)
    weights = (n_bytes + sum(parameter.nbytes for parameter in model.parameters())) / 1e6
    aim = None if factor is None else factor * weights + more
    return {
        "weights_mb": weights,
        "peak_mb": peak.total,
        "peak_anonymous_mb": peak.anonymous,
        "aim_mb": aim,
        "met": None if aim is None else peak.total <= aim,
        "seconds": seconds,
    }


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), sys.argv[2])))
