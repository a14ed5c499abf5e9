"""Options of the generate scripts: which model, and what it is to say."""

from dataclasses import dataclass, field
from pathlib import Path

from lit_llm.args.base import Accelerator, Checked, Precision, Quantization


@dataclass(frozen=True)
class GenerateArgs(Checked):
    """What to generate, and how"""

    prompt: str | None = None
    """Text to continue; an empty one starts from BOS."""
    prompt_file: Path | None = None
    """File that holds the prompt."""
    checkpoint_dir: Path | None = None
    """Folder of the model; the embedded demo's if not given."""
    num_samples: int = 1
    """Texts to generate."""
    max_new_tokens: int = 50
    """Tokens at most, the prompt not counted."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int | None = None
    """Sample among the k likeliest tokens only."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities sum to at least this (https://arxiv.org/abs/1904.09751)."""
    seed: int = 1337
    """Seed of the samples."""
    precision: Precision | None = None
    """Weights and arithmetic. On a CPU float32, else the checkpoint's own, if not given."""
    quantize: Quantization | None = None
    """Hold the linears in 4 or 8 bits."""
    accelerator: Accelerator = "auto"
    """Kind of device."""

    def rules(self) -> list[tuple[bool, str]]:
        return [
            ((self.prompt is None) == (self.prompt_file is None), "give either --prompt TEXT or --prompt_file FILE"),
            *self.below(0, "num_samples", "max_new_tokens", "top_k"),
            *self.below(0, "temperature", "seed", allow_equal=True),
            (not 0 < self.top_p <= 1, f"--top_p must be above 0 and at most 1, found {self.top_p}"),
            (
                self.temperature == 0 and (self.top_k is not None or self.top_p < 1),
                "--temperature 0 takes the likeliest token: --top_k and --top_p cannot act. Leave them out",
            ),
            (
                self.temperature == 0 and self.num_samples > 1,
                "--temperature 0 gives the same text each time: leave out --num_samples",
            ),
            (
                self.precision is not None and self.precision.endswith("-mixed"),
                f"--precision {self.precision} is for training. Generate in 32-true, 16-true or bf16-true",
            ),
        ]


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


@dataclass(frozen=True)
class FullGenerateArgs(GenerateArgs):
    """What to generate, and how"""

    checkpoint_dir: Path = field(kw_only=True)
    """Folder of the finetuned model, as finetuning wrote it."""
    prompt: str | None = None
    """Instruction to answer, in the prompt style of the finetuning."""
    input: str = ""
    """Further input that goes with the instruction."""


@dataclass(frozen=True)
class ModelArgs(Checked):
    """Which model"""

    checkpoint_dir: Path | None = None
    """Folder of the model; with adapter_dir the base that it was trained on, if not given; else the embedded demo's."""
    adapter_dir: Path | None = None
    """Folder of an adapter; it stays unmerged."""
    precision: Precision | None = None
    """Weights and arithmetic. On a CPU float32, else the checkpoint's own, if not given."""
    quantize: Quantization | None = None
    """Hold the linears in 4 or 8 bits."""
    accelerator: Accelerator = "auto"
    """Kind of device."""

    def rules(self) -> list[tuple[bool, str]]:
        mixed = self.precision is not None and self.precision.endswith("-mixed")
        return [(mixed, f"--precision {self.precision} is for training. Take 32-true, 16-true or bf16-true")]
