"""Peak memory of loading a checkpoint, each case measured in a process of its own."""

import platform
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.measuring import in_new_process, report, require_linux, table
from lit_llm.bench.shapes import shape
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.tensor_names import to_hf
from lit_llm.checkpoint.write import write_shards
from lit_llm.files import write_json
from lit_llm.model.config import Config
from lit_llm.model.cpu_linear import LaidOutLinear
from lit_llm.model.gpt import GPT

SHARD_BYTES = 500 * 10**6
LLAMA_1B = shape("llama", 32000, 2048, 16, 32, 8192, num_key_value_heads=8)
# Options of `load_model`, and the aim, if there is one: at most this factor of the loaded weights, plus MB.
CASES: dict[str, tuple[dict[str, Any], float | None, int]] = {
    "as stored": ({}, 1.1, 0),
    "float32": ({"dtype": torch.float32}, 1.1, 0),
    "bnb.nf4": ({"dtype": torch.bfloat16, "quantize": "bnb.nf4"}, 1.3, 100),
    "fp16 for a CPU": ({"dtype": torch.float32, "layout": "fp16"}, None, 0),
    "int8 for a CPU": ({"dtype": torch.float32, "layout": "int8"}, None, 0),
}
COLUMNS = {
    "loaded as": "{name}", "weights MB": "{weights_mb:.0f}", "peak MB": "{peak_mb:.0f}",
    "of it anonymous": "{peak_anonymous_mb:.0f}", "aim MB": "{aim}", "seconds": "{seconds:.0f}", "met": "{as_aimed}",
}  # fmt: skip


def measure(args: BenchmarkArgs) -> None:
    """Print the memory beyond that of the process before loading, in MB (10^6 bytes)."""
    require_linux("load_memory")
    with tempfile.TemporaryDirectory() as folder:
        n_weights = _make_checkpoint(Path(folder))
        cases = {name: in_new_process(load_case, folder, name, as_user=True) for name in CASES}
    rows = [{"name": name, "aim": "", "as_aimed": "", **case} for name, case in cases.items()]
    for row in rows:
        if row["met"] is not None:
            row |= {"aim": f"{row['aim_mb']:.0f}", "as_aimed": "yes" if row["met"] else "no"}
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    report({"check": "load_memory", "n_weights": n_weights, **machine, "cases": cases}, table(COLUMNS, rows))


def _make_checkpoint(folder: Path) -> int:
    """Write random bfloat16 weights in the shape of a Llama as Hugging Face publishes it; return their number."""
    write_json(folder / "config.json", LLAMA_1B)
    config = Config.from_hf(LLAMA_1B)
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
    """Return the resident MB of this process: anonymous, and mapped from files, which the system can drop and read again."""
    status = Path("/proc/self/status").read_text()
    return {kind: int(size) * 1024 / 1e6 for kind, size in re.findall(r"^(RssAnon|RssFile|RssShmem):\s+(\d+) kB", status, re.M)}


def load_case(folder: str, name: str) -> dict[str, Any]:
    """Load the checkpoint in this process, which has done no other work."""
    options, factor, more = CASES[name]
    if "quantize" in options:
        import bitsandbytes  # noqa: F401  (its own size is not that of the model)
    peak, start = _Peak(), time.perf_counter()
    peak.start()
    model = load_model(Path(folder), **options)
    seconds = time.perf_counter() - start
    for parameter in model.parameters():
        parameter.view(torch.uint8).view(-1)[::4096].sum()  # mapped weights come into memory on use
    peak.stopped.set()
    peak.join()
    laid_out = [module for module in model.modules() if isinstance(module, LaidOutLinear)]
    n_bytes = sum(m.in_features * m.out_features * (2 if m.layout == "fp16" else 1) for m in laid_out)
    weights = (n_bytes + sum(parameter.nbytes for parameter in model.parameters())) / 1e6
    aim = None if factor is None else factor * weights + more
    met = None if aim is None else peak.total <= aim
    figures = {"weights_mb": weights, "peak_mb": peak.total, "peak_anonymous_mb": peak.anonymous, "aim_mb": aim}
    return {**figures, "met": met, "seconds": seconds}
