"""Peak memory of loading a checkpoint, each case measured in a process of its own."""

import platform
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.measuring import in_new_process, report, require_linux, table
from lit_llm.bench.shapes import shape
from lit_llm.checkpoint.gguf_write import write_model
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.tensor_names import to_hf
from lit_llm.checkpoint.write import write_shards
from lit_llm.files import write_json
from lit_llm.model.config import Config
from lit_llm.model.cpu_linear import LaidOutLinear
from lit_llm.model.gpt import GPT
from lit_llm.text.gguf_file import check_installed

SHARD_BYTES = 500 * 10**6
LLAMA_1B = shape("llama", 32000, 2048, 16, 32, 8192, num_key_value_heads=8)
TINYLLAMA = shape("llama", 32000, 2048, 22, 32, 5632, num_key_value_heads=4)
QUANTIZED: dict[str, dict[str, Any]] = {
    "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "gptq": {"bits": 4, "group_size": 128, "desc_act": False},
}
"""`quantization_config` of folders that are quantized already; "plain" is not."""
GGUF = "q4_0.gguf"
_AS_NF4 = {"dtype": torch.bfloat16, "quantize": "bnb.nf4"}
# Folder, options of `load_model`, and the aim, if there is one: at most this factor of the loaded weights, plus MB.
CASES: dict[str, tuple[str, dict[str, Any], float | None, int]] = {
    "as stored": ("plain", {}, 1.1, 0),
    "float32": ("plain", {"dtype": torch.float32}, 1.1, 0),
    "bnb.nf4": ("plain", _AS_NF4, 1.3, 100),
    "fp16 for a CPU": ("plain", {"dtype": torch.float32, "layout": "fp16"}, None, 0),
    "int8 for a CPU": ("plain", {"dtype": torch.float32, "layout": "int8"}, None, 0),
    "a bnb-4bit folder as stored": ("bitsandbytes", _AS_NF4, 1.3, 0),
    "a bnb-4bit folder, dequantized": ("bitsandbytes", {}, 1.3, 0),
    "a GPTQ folder, dequantized": ("gptq", {}, 1.3, 0),
    "a GPTQ folder, in bnb.nf4": ("gptq", _AS_NF4, 1.3, 0),
    "a GGUF file of Q4_0, float32": (GGUF, {"dtype": torch.float32}, 1.3, 0),
    "a GGUF file of Q4_0, bfloat16": (GGUF, {"dtype": torch.bfloat16}, 1.3, 0),
    "a GGUF file of Q4_0, in bnb.nf4": (GGUF, _AS_NF4, 1.3, 0),
}
COLUMNS = {
    "loaded as": "{name}", "weights MB": "{weights_mb:.0f}", "peak MB": "{peak_mb:.0f}",
    "of it anonymous": "{peak_anonymous_mb:.0f}", "aim MB": "{aim}", "seconds": "{seconds:.0f}", "met": "{as_aimed}",
}  # fmt: skip


def measure(args: BenchmarkArgs) -> None:
    """Print the memory beyond that of the process before loading, in MB (10^6 bytes)."""
    require_linux("load_memory")
    with tempfile.TemporaryDirectory() as folder:
        n_weights = {kind: _make_checkpoint(Path(folder) / kind, kind) for kind in ("plain", *QUANTIZED)}
        in_new_process(_make_gguf, str(Path(folder) / GGUF))
        cases = {name: in_new_process(load_case, str(Path(folder) / CASES[name][0]), name, as_user=True) for name in CASES}
    rows = [{"name": name, "aim": "", "as_aimed": "", **case} for name, case in cases.items()]
    for row in rows:
        if row["met"] is not None:
            row |= {"aim": f"{row['aim_mb']:.0f}", "as_aimed": "yes" if row["met"] else "no"}
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    report({"check": "load_memory", "n_weights": n_weights, **machine, "cases": cases}, table(COLUMNS, rows))


def _make_checkpoint(folder: Path, kind: str) -> int:
    """Write random weights in the shape of a published Llama, in bfloat16 or quantized. Return their number."""
    hf = LLAMA_1B if kind == "plain" else {**TINYLLAMA, "quantization_config": {"quant_method": kind, **QUANTIZED[kind]}}
    folder.mkdir()
    write_json(folder / "config.json", {**hf, "dtype": "bfloat16"})
    config = Config.from_hf(hf)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}
    readers = {
        name: lambda shape=shape: torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02) for name, shape in shapes.items()
    }
    tensors = (part for name, tensor in to_hf(config, readers) for part in _stored(kind, name, tensor))
    write_shards(tensors, folder, "model.safetensors", SHARD_BYTES)
    return sum(shape.numel() for shape in shapes.values())


def _make_gguf(path: str) -> None:
    """Write random weights in the shape of TinyLlama."""
    check_installed("The check load_memory")
    with torch.device("meta"):
        model = GPT(Config.from_hf(TINYLLAMA)).bfloat16()
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02)
    write_model(Path(path), model, "q4_0", {})


def _stored(kind: str, name: str, weight: Tensor) -> list[tuple[str, Tensor]]:
    """Return the tensors of a weight in the layout of `kind`."""
    if kind == "plain" or not name.endswith("proj.weight"):
        return [(name, weight)]
    stem, (n_out, n_in) = name.removesuffix(".weight"), weight.shape
    if kind == "bitsandbytes":
        from bitsandbytes.functional import quantize_4bit

        codes, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
        packed = state.as_dict(packed=True)
        return [(name, codes), *((f"{name}.{part}", tensor) for part, tensor in packed.items())]
    groups = n_in // QUANTIZED[kind]["group_size"]
    return [
        (f"{stem}.qweight", torch.randint(2**31, (n_in // 8, n_out), dtype=torch.int32)),
        (f"{stem}.qzeros", torch.randint(2**31, (groups, n_out // 8), dtype=torch.int32)),
        (f"{stem}.scales", torch.full((groups, n_out), 0.01, dtype=torch.float16)),
    ]


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
    _, options, factor, more = CASES[name]
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
