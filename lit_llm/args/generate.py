"""Options of the generate scripts: which model, and what it is to say."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lit_llm.args.base import Accelerator, Checked, CpuWeights, InferenceStrategy, Precision, Quantization, sampling_rules


@dataclass(frozen=True)
class GenerateArgs(Checked):
    """What to generate, and how"""

    prompt: str | None = None
    """Text to continue; an empty one starts from BOS."""
    prompt_file: Path | None = None
    """File that holds the prompt; or a .jsonl file with one on each line, as a JSON text or a record."""
    output_file: Path | None = None
    """File to write answers to, as JSON lines. If it holds the first of them already, the others are added."""
    checkpoint_dir: Path | None = None
    """Folder of the model; the embedded demo's if not given."""
    draft_checkpoint_dir: Path | None = None
    """Folder of a small model with the same tokens, which drafts what the large one judges; texts then come one by one."""
    num_samples: int = 1
    """Texts to generate for each prompt."""
    batch_size: int = 16
    """Texts that are generated at the same time."""
    max_new_tokens: int = 50
    """Tokens at most, the prompt not counted."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int | None = None
    """Sample among the k likeliest tokens only."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities sum to at least this (https://arxiv.org/abs/1904.09751)."""
    min_p: float = 0.0
    """Sample among tokens of at least this probability relative to the likeliest (https://arxiv.org/abs/2407.01082)."""
    repetition_penalty: float = 1.0
    """Make tokens that were there less likely by this factor (https://arxiv.org/abs/1909.05858); 1 does nothing."""
    seed: int = 1337
    """Seed of the first sample; each further one has the next."""
    stop: list[str] = field(default_factory=list)
    """Text at which a completion ends, and which is not part of it; may be given several times."""
    stream: bool = False
    """Print text as it comes."""
    logprobs: int | None = None
    """Write log-probabilities of the tokens, each beside this many of the likeliest."""
    precision: Precision | None = None
    """Weights and arithmetic. On a CPU float32, else the checkpoint's own, if not given."""
    quantize: Quantization | None = None
    """Hold the linears in 4 or 8 bits."""
    cpu_weights: CpuWeights | None = None
    """Pack the linears for decoding on a CPU in 16 or 8 bits, which multiply float32."""
    kv_cache: Literal["int8"] | None = None
    """Hold keys and values of past tokens in 8 bits."""
    compile: bool = False
    """Compile the model; the first token then takes a minute, and the others less time on CUDA."""
    accelerator: Accelerator = "auto"
    """Kind of device."""
    devices: int = 1
    """Devices that the model is split over."""
    strategy: InferenceStrategy = "auto"
    """`tensor`: each holds some heads and features of every layer; `layers`: some of the layers, on GPUs. The first that goes
    if auto."""

    def rules(self) -> list[tuple[bool, str]]:
        as_lines = self.output_file is not None or self.has_many_prompts()
        one_text = not as_lines and self.num_samples == 1
        defaults = {"batch_size": 16, "logprobs": None, "compile": False, "kv_cache": None}
        drafted = self.draft_checkpoint_dir is not None
        undrafted = [f"`{name}`" for name, default in defaults.items() if drafted and getattr(self, name) != default]
        return [
            ((self.prompt is None) == (self.prompt_file is None), "give either `prompt` TEXT or `prompt_file` FILE"),
            *self.below(0, "num_samples", "batch_size", "max_new_tokens", "devices"),
            *sampling_rules(self),
            *[
                (
                    self.devices > 1 and bool(getattr(self, name)),
                    f"`devices` {self.devices} does not go with `{name}`. Leave it out",
                )
                for name in ("cpu_weights", "compile", "draft_checkpoint_dir")
            ],
            (
                self.devices > 1 and self.strategy != "layers" and self.output_file is not None,
                f"`devices` {self.devices} does not go with `output_file`. Leave it out, or take `strategy` layers on GPUs",
            ),
            (self.devices == 1 and self.strategy != "auto", f"`strategy` {self.strategy} needs `devices` above 1"),
            *self.below(0, "seed", "logprobs", allow_equal=True),
            (
                self.output_file is not None
                and self.prompt_file is not None
                and self.output_file.resolve() == self.prompt_file.resolve(),
                "`output_file` is the `prompt_file`. Give another",
            ),
            ("" in self.stop, "`stop` must not be empty"),
            (
                self.temperature == 0 and (self.top_k is not None or self.top_p < 1 or self.min_p > 0),
                "`temperature` 0 takes the likeliest token: `top_k`, `top_p` and `min_p` cannot act. Leave them out",
            ),
            (
                self.stream and not one_text,
                "`stream` prints one text: leave out `num_samples`, `output_file` or the .jsonl file",
            ),
            (self.logprobs is not None and not as_lines, "`logprobs` are written as JSON lines: give an `output_file`"),
            (self.cpu_weights is not None and self.quantize is not None, "give either `cpu_weights` or `quantize`"),
            (bool(undrafted), f"`draft_checkpoint_dir` does not go with {', '.join(undrafted)}"),
            (self.compile and self.cpu_weights is not None, "`compile` cannot look into `cpu_weights`. Leave out one of them"),
            (
                self.temperature == 0 and self.num_samples > 1,
                "`temperature` 0 gives the same text each time: leave out `num_samples`",
            ),
            (
                self.precision is not None and self.precision.endswith("-mixed"),
                f"`precision` {self.precision} is for training. Generate in 32-true, 16-true or bf16-true",
            ),
        ]

    def has_many_prompts(self) -> bool:
        """Whether prompts come from JSON lines."""
        return self.prompt_file is not None and self.prompt_file.suffix == ".jsonl"


@dataclass(frozen=True)
class AdapterGenerateArgs(GenerateArgs):
    """What to generate, and how"""

    adapter_dir: Path = field(kw_only=True)
    """Folder of the adapter, as finetuning wrote it."""
    checkpoint_dir: Path | None = None
    """Folder of the base model; the one that the adapter was trained on if not given."""
    prompt: str | None = None
    """Instruction to answer, in the adapter's prompt style."""
    input: str = ""
    """Further input that goes with the instruction."""

    def rules(self) -> list[tuple[bool, str]]:
        wrong = bool(self.input) and self.has_many_prompts()
        return [*super().rules(), (wrong, "`input` goes with `prompt`: a record of a .jsonl file has an input of its own")]


@dataclass(frozen=True)
class LoRAGenerateArgs(AdapterGenerateArgs):
    """What to generate, and how"""

    merge: bool = False
    """Add the adapter to the weights, which makes it free; else it stays beside them."""

    def rules(self) -> list[tuple[bool, str]]:
        wrong = self.merge and self.quantize is not None
        return [*super().rules(), (wrong, "`merge` needs the base in full precision: leave out `quantize`")]


@dataclass(frozen=True)
class FullGenerateArgs(GenerateArgs):
    """What to generate, and how"""

    checkpoint_dir: Path = field(kw_only=True)
    """Folder of the finetuned model, as finetune/full.py or scripts/merge_lora.py wrote it."""
    prompt: str | None = None
    """Instruction to answer, in the prompt style of the finetuning."""
    input: str = ""
    """Further input that goes with the instruction."""

    def rules(self) -> list[tuple[bool, str]]:
        wrong = bool(self.input) and self.has_many_prompts()
        return [*super().rules(), (wrong, "`input` goes with `prompt`: a record of a .jsonl file has an input of its own")]


@dataclass(frozen=True)
class ModelArgs(Checked):
    """Which model"""

    checkpoint_dir: Path | None = None
    """Folder of the model; with adapter_dir the base that it was trained on, if not given; else the embedded demo's."""
    adapter_dir: Path | None = None
    """Folder of an adapter."""
    merge: bool = False
    """Add a LoRA adapter to the weights, which makes it free; else it stays beside them."""
    precision: Precision | None = None
    """Weights and arithmetic. On a CPU float32, else the checkpoint's own, if not given."""
    quantize: Quantization | None = None
    """Hold the linears in 4 or 8 bits."""
    cpu_weights: CpuWeights | None = None
    """Pack the linears for decoding on a CPU in 16 or 8 bits, which multiply float32."""
    accelerator: Accelerator = "auto"
    """Kind of device."""
    devices: int = 1
    """GPUs that the layers are spread over."""

    def rules(self) -> list[tuple[bool, str]]:
        mixed = self.precision is not None and self.precision.endswith("-mixed")
        return [
            *self.below(0, "devices"),
            (self.devices > 1 and self.cpu_weights is not None, "`devices` does not go with `cpu_weights`. Leave it out"),
            (mixed, f"`precision` {self.precision} is for training. Take 32-true, 16-true or bf16-true"),
            (self.merge and self.adapter_dir is None, "`merge` needs `adapter_dir`"),
            (self.merge and self.quantize is not None, "`merge` needs the base in full precision: leave out `quantize`"),
            (self.cpu_weights is not None and self.quantize is not None, "give either `cpu_weights` or `quantize`"),
        ]
