"""Options of the generate scripts, and those that all scripts share that run a model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_llm.args import base
from lit_llm.args.base import (
    Accelerator,
    Checked,
    CpuWeights,
    InferenceStrategy,
    Precision,
    Quantization,
    Rules,
    bounds,
)


@dataclass(frozen=True)
class PromptArgs(Checked):
    """Prompts and models"""

    prompt: str | None = None
    """Text to continue; an empty one starts from BOS."""
    prompt_file: Path | None = None
    """File with the prompt; or a .jsonl file with one prompt per line, as a JSON string or a record."""
    output_file: Path | None = None
    """File to write answers to, as JSON lines. If it already contains the first of them, the others are appended."""
    checkpoint_dir: Path | None = None
    """Folder of the model. Default: the embedded demo's."""
    draft_checkpoint_dir: Path | None = None
    """Folder of a small model with the same tokens, for speculative decoding; completions are then generated one by one."""
    num_samples: int = 1
    """Completions of each prompt."""
    batch_size: int = 16
    """Completions that are generated at the same time."""
    max_new_tokens: int = 50
    """Longest completion, in tokens."""

    def rules(self) -> Rules:
        same = self.output_file is not None and self.prompt_file is not None
        same = same and self.output_file.resolve() == self.prompt_file.resolve()  # type: ignore[union-attr]
        return [
            *super().rules(),
            ((self.prompt is None) == (self.prompt_file is None), "give either `prompt` or `prompt_file`"),
            *bounds(self, "num_samples", "batch_size", "max_new_tokens", above=0),
            (same, "`output_file` is the `prompt_file`. Name another"),
        ]

    def has_many_prompts(self) -> bool:
        """Return whether prompts come from JSON lines."""
        return self.prompt_file is not None and self.prompt_file.suffix == ".jsonl"


@dataclass(frozen=True)
class SamplingArgs(Checked):
    """Sampling"""

    temperature: float = 0.8
    """Divides the logits; 0 takes the most likely token."""
    top_k: int | None = None
    """Sample among the k most likely tokens only."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities sum to at least this (https://arxiv.org/abs/1904.09751)."""
    seed: int = 1337
    """Seed of the first sample; each further one uses the next integer."""

    def rules(self) -> Rules:
        idle = [f"`{name}`" for name in ("top_k", "top_p", "min_p") if hasattr(self, name) and self.changed(name)]
        greedy = f"`temperature` 0 takes the most likely token, so {', '.join(idle)} cannot act. Omit them"
        return [
            *super().rules(),
            *base.sampling_rules(self),
            *bounds(self, "seed", at_least=0),
            (self.temperature == 0 and bool(idle), greedy),
        ]


@dataclass(frozen=True)
class WeightsArgs(Checked):
    """Weights of a model that is not trained"""

    precision: Precision | None = None
    """dtype of weights and arithmetic. Default: float32 on a CPU, otherwise the checkpoint's own."""
    quantize: Quantization | None = None
    """Quantize the linears to 4 or 8 bits."""
    accelerator: Accelerator = "auto"
    """Kind of device."""

    def rules(self) -> Rules:
        mixed = self.precision is not None and self.precision.endswith("-mixed")
        message = f"`precision` {self.precision} is for training. Use 32-true, 16-true or bf16-true"
        return [*super().rules(), (mixed, message)]


@dataclass(frozen=True)
class DecodingArgs(WeightsArgs):
    """Weights and devices of a model that generates"""

    cpu_weights: CpuWeights | None = None
    """Store the linears for decoding on a CPU in 16 or 8 bits; products are float32. int8 also rounds the inputs of each
    product, to 7 bits, and changes answers: see tutorials/benchmarks.md."""
    devices: int = 1
    """GPUs that the layers are spread over."""

    def rules(self) -> Rules:
        return [
            *super().rules(),
            *bounds(self, "devices", above=0),
            *self.excludes("devices", "cpu_weights"),
            *self.excludes("cpu_weights", "quantize"),
        ]


@dataclass(frozen=True)
class SplitArgs(DecodingArgs):
    """Weights and devices of a model that may be split by heads"""

    devices: int = 1
    """Devices that the model is split over."""
    strategy: InferenceStrategy = "auto"
    """`tensor`: each device holds some heads and features of every layer. `layers`: each GPU holds some of the layers. `auto`:
    the first of these that the model and the devices allow."""

    def rules(self) -> Rules:
        message = f"`strategy` {self.strategy} needs `devices` above 1"
        return [*super().rules(), (self.devices == 1 and self.strategy != "auto", message)]


@dataclass(frozen=True)
class GenerateArgs(SplitArgs, SamplingArgs, PromptArgs):
    """Generation"""

    min_p: float = 0.0
    """Sample among tokens of at least this probability relative to the most likely (https://arxiv.org/abs/2407.01082)."""
    repetition_penalty: float = 1.0
    """Make tokens that have occurred less likely by this factor (https://arxiv.org/abs/1909.05858); 1 has no effect."""
    stop: list[str] = field(default_factory=list)
    """String that ends a completion and is not part of it; may be given several times."""
    stream: bool = False
    """Print text as it is generated."""
    logprobs: int | None = None
    """Write the log-probability of each token, next to those of this many most likely ones."""
    kv_cache: Literal["int8"] | None = None
    """Hold keys and values of past tokens in 8 bits."""
    compile: bool = False
    """Compile the model: the first token takes a minute, further ones are faster on CUDA."""

    def rules(self) -> Rules:
        as_lines = self.output_file is not None or self.has_many_prompts()
        one_text = not as_lines and self.num_samples == 1
        split_file = self.devices > 1 and self.strategy != "layers" and self.output_file is not None
        return [
            *super().rules(),
            *bounds(self, "logprobs", at_least=0),
            *self.excludes("devices", "compile", "draft_checkpoint_dir"),
            *self.excludes("draft_checkpoint_dir", "batch_size", "logprobs", "compile", "kv_cache"),
            *self.excludes("compile", "cpu_weights"),
            (split_file, "`devices` above 1 needs `strategy` layers, on GPUs, to write an `output_file`"),
            ("" in self.stop, "`stop` must not be empty"),
            (self.stream and not one_text, "`stream` prints one text. Omit `num_samples`, `output_file` and the .jsonl file"),
            (self.logprobs is not None and not as_lines, "`logprobs` are written as JSON lines and need an `output_file`"),
            (self.temperature == 0 and self.num_samples > 1, "`temperature` 0 repeats itself. Omit `num_samples`"),
        ]


@dataclass(frozen=True)
class InstructionArgs(GenerateArgs):
    prompt: str | None = None
    """Instruction to answer, in the prompt style that the model was finetuned with."""
    input: str = ""
    """Further input of the instruction."""
    template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template as a JSON object, e.g. {"enable_thinking": false}. Default: those of the finetuning."""

    def rules(self) -> Rules:
        wrong = bool(self.input) and self.has_many_prompts()
        return [
            *super().rules(),
            *base.template_rules(self),
            (wrong, "`input` needs `prompt`: a record of a .jsonl file has an input of its own"),
        ]


@dataclass(frozen=True)
class AdapterGenerateArgs(InstructionArgs):
    adapter_dir: Path = field(kw_only=True)
    """Folder of the adapter, as finetuning wrote it; for LoRA, also one of PEFT."""
    checkpoint_dir: Path | None = None
    """Folder of the base model. Default: the one that the adapter was trained on."""


@dataclass(frozen=True)
class LoRAGenerateArgs(AdapterGenerateArgs):
    merge: bool = False
    """Add the adapter to the weights, so that it costs no time."""

    def rules(self) -> Rules:
        return [*super().rules(), *self.excludes("merge", "quantize")]


@dataclass(frozen=True)
class FullGenerateArgs(InstructionArgs):
    checkpoint_dir: Path = field(kw_only=True)
    """Folder of the finetuned model, as finetune/full.py or scripts/merge_lora.py wrote it."""


@dataclass(frozen=True)
class ModelArgs(DecodingArgs):
    """Model"""

    checkpoint_dir: Path | None = None
    """Folder of the model. Default: with adapter_dir, the base that it was trained on; otherwise the embedded demo's."""
    adapter_dir: Path | None = None
    """Folder of an adapter, as finetuning or PEFT (LoRA only) wrote it."""
    merge: bool = False
    """Add a LoRA adapter to the weights, so that it costs no time."""

    def rules(self) -> Rules:
        return [*super().rules(), *self.needs("adapter_dir", "merge"), *self.excludes("merge", "quantize")]
