"""Options of the benchmark and of the estimate."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, get_args

from lit_llm.args.base import Checked, Quantization, Rules, bounds
from lit_llm.args.finetune import AdapterArgs, LoRAArgs, MethodName

ON_DATA = ("invariance", "packing_speed", "rounding_error")
Shape = Literal["pythia-70m", "llama-6x512", "llama-100m"]


@dataclass(frozen=True)
class BenchmarkArgs(Checked):
    """Measurement"""

    used_by: ClassVar[dict[str, tuple[str, ...]]] = {
        "checkpoint_dir": ON_DATA,
        "data_dir": ON_DATA,
        "shapes": ("train_speed", "eval_speed"),
        "repetitions": ("train_speed", "eval_speed", "packing_speed", "decode_speed"),
        "n_examples": ("train_speed", "eval_speed", "prepare_speed", *ON_DATA),
        "clients": ("serve_load",),
        "seconds": ("serve_load", "serve_attack"),
    }
    """The checks that each option acts on."""

    check: Literal[
        "train_speed", "invariance", "load_memory", "demo_methods", "serve_load", "serve_attack", "eval_speed",
        "memory_estimate", "packing_speed", "decode_speed", "prepare_speed", "rounding_error",
    ]  # fmt: skip
    """train_speed: LoRA steps, compared with transformers with PEFT and with litgpt, if installed. invariance: loss and
    gradient on your data, which must not depend on micro-batches or packing. load_memory: peak memory while a checkpoint is
    loaded. demo_methods: every method of finetuning on the embedded demo. serve_load: the server on the demo, with many
    clients. serve_attack: the server on the demo, with one client and many that attack it. eval_speed: multiple choice in the
    evaluation harness, compared with its own model. decode_speed: prefill and decoding, compared with transformers and litgpt,
    if installed; on CUDA also the share of the memory bandwidth. memory_estimate: estimated and measured memory of a step.
    packing_speed: layouts of a step on your data. prepare_speed: rows into a data folder and into tokens. rounding_error:
    predictions with weights in fewer bits, compared with float32, on your data."""
    checkpoint_dir: Path | None = None
    """Model for invariance, packing_speed and rounding_error."""
    data_dir: Path | None = None
    """Data for invariance, packing_speed and rounding_error."""
    shapes: list[Shape] = field(default_factory=lambda: list(get_args(Shape)))
    """Sizes of the models for train_speed and eval_speed."""
    repetitions: int = 5
    """Measured steps, evaluations or texts of each package, for train_speed, eval_speed, packing_speed and decode_speed."""
    n_examples: int = 16
    """Examples per step; questions for eval_speed; rows for prepare_speed and rounding_error."""
    clients: int = 200
    """Concurrent clients for serve_load."""
    seconds: float = 120
    """Duration of serve_load and serve_attack, in seconds."""

    def rules(self) -> Rules:
        on_data = self.check in self.used_by["data_dir"]
        lacking = on_data and (self.checkpoint_dir is None or self.data_dir is None)
        given = [name for name in self.used_by if self.changed(name)]
        return [
            *bounds(self, "repetitions", "n_examples", "clients", "seconds", above=0),
            *[(self.check not in self.used_by[name], f"`{name}` has no effect on `check` {self.check}") for name in given],
            (
                self.check == "prepare_speed" and self.n_examples < 20_000,
                "`check` prepare_speed needs `n_examples` of 20000 or more: fewer rows are not cached",
            ),
            (lacking, f"`check` {self.check} needs `checkpoint_dir` and `data_dir`"),
        ]


@dataclass(frozen=True)
class EstimateArgs(Checked):
    """Estimate of memory and time"""

    checkpoint_dir: Path
    """Folder with config.json; weights are not needed."""
    method: MethodName = "lora"
    """Method of finetuning."""
    max_seq_length: int | None = None
    """Longest example in tokens. Default: the smaller of the model's context and 2048."""
    micro_batch_size: int = 4
    """Examples per forward pass."""
    global_batch_size: int = 32
    """Examples per optimizer step."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"] = "32-true"
    """dtype of frozen weights and arithmetic; mixed stores float32 and multiplies in half precision."""
    quantize: Quantization | None = None
    """Quantize the frozen linears to 4 or 8 bits."""
    hours: float | None = None
    """Hours to plan for, on a gpu."""
    gpu: Literal["a100-40gb", "a100-80gb", "h100-80gb", "rtx-4090"] | None = None
    """GPU to plan for."""
    devices: int = 1
    """GPUs of each node."""
    num_nodes: int = 1
    """Machines."""
    lora: LoRAArgs = field(default_factory=LoRAArgs)
    adapter: AdapterArgs = field(default_factory=AdapterArgs)

    def rules(self) -> Rules:
        return [
            *bounds(self, "max_seq_length", "micro_batch_size", "global_batch_size", "hours", "devices", "num_nodes", above=0),
            (self.method == "full" and self.quantize is not None, "`quantize` freezes the weights that `method` full trains"),
            *self.needs("gpu", "hours", "devices", "num_nodes"),
            (self.changed("lora") and self.method not in ("lora", "dpo"), "`lora` options have no effect on this method"),
            (self.changed("adapter") and "adapter" not in self.method, "`adapter` options have no effect on this method"),
        ]
