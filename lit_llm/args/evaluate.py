"""Options of the eval scripts."""

from dataclasses import dataclass, field
from pathlib import Path

from lit_llm.args.base import Accelerator, Checked, InferenceStrategy, Precision, Quantization
from lit_llm.args.generate import ModelArgs


@dataclass(frozen=True)
class HarnessArgs(ModelArgs):
    """What to evaluate, on what"""

    tasks: str | list[str] = field(kw_only=True)
    """Tasks or groups of the harness, as in `[hellaswag,truthfulqa_mc2]`."""
    include_path: Path | None = None
    """Folder with more tasks, as YAML files."""
    num_fewshot: int | None = None
    """Solved examples before each question; as the task says if not given."""
    limit: float | None = None
    """Questions per task at most; below 1 a share of them."""
    batch_size: int = 8
    """Texts in one pass of the model."""
    apply_chat_template: bool = False
    """Ask as in a chat: in the style that the model was finetuned with, else in the checkpoint's chat template."""
    prompt_style: str | None = None
    """Another style for --apply_chat_template."""
    output_file: Path | None = None
    """File for the results, in the harness's own JSON."""
    log_samples: bool = False
    """Write samples_<task>.jsonl beside output_file: every question with what the model made of it."""
    devices: int = 1
    """Devices that the model is split over."""
    strategy: InferenceStrategy = "auto"
    """`tensor`: each holds some heads and features of every layer; `layers`: some of the layers, on GPUs. The first that goes
    if auto."""

    def rules(self) -> list[tuple[bool, str]]:
        return [
            *super().rules(),
            *self.below(0, "batch_size", "limit"),
            (self.devices == 1 and self.strategy != "auto", f"`strategy` {self.strategy} needs `devices` above 1"),
            *self.below(0, "num_fewshot", allow_equal=True),
            (self.prompt_style is not None and not self.apply_chat_template, "`prompt_style` needs `apply_chat_template`"),
            (self.log_samples and self.output_file is None, "`log_samples` needs `output_file` FILE to write beside"),
        ]


@dataclass(frozen=True)
class PerplexityArgs(ModelArgs):
    """What to evaluate, on what"""

    data_file: Path = field(kw_only=True)
    """Text file."""
    stride: int | None = None
    """Tokens that each window scores; less than the context gives each token more to go by, and costs more passes.
    The whole context if not given."""
    batch_size: int = 8
    """Windows in one pass of the model."""

    def rules(self) -> list[tuple[bool, str]]:
        return [*super().rules(), *self.below(0, "stride", "batch_size")]


@dataclass(frozen=True)
class CompareArgs(Checked):
    """What to compare, on what"""

    models: list[Path]
    """Folders of checkpoints and adapters, as in `[checkpoints/org/base, out/lora/name/final]`; all are held against the
    first."""
    data_dir: Path | None = None
    """Data folder: the rows of its val.jsonl are asked; of plain texts only the loss is told."""
    tasks: str | list[str] | None = None
    """Tasks or groups of the evaluation harness, as in `[hellaswag,truthfulqa_mc2]`."""
    include_path: Path | None = None
    """Folder with more tasks, as YAML files."""
    num_fewshot: int | None = None
    """Solved examples before each question of a task; as the task says if not given."""
    prompt_style: str | None = None
    """How a row becomes a prompt for the models that were not finetuned; as for the first finetuned one if not given."""
    limit: int | None = None
    """Rows, and questions of each task, at most."""
    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    batch_size: int = 8
    """Rows in one pass of the model."""
    n_resamples: int = 1000
    """Resamples of the rows, of which the intervals are made."""
    precision: Precision | None = None
    """Weights and arithmetic. On a CPU float32, else the checkpoint's own, if not given."""
    quantize: Quantization | None = None
    """Hold the linears in 4 or 8 bits."""
    accelerator: Accelerator = "auto"
    """Kind of device."""
    seed: int = 1337
    """Seed of the resampling."""

    def rules(self) -> list[tuple[bool, str]]:
        return [
            *self.below(0, "limit", "max_new_tokens", "batch_size", "n_resamples"),
            *self.below(0, "seed", allow_equal=True),
            *self.below(0, "num_fewshot", allow_equal=True),
            (self.data_dir is None and self.tasks is None, "give `data_dir`, `tasks`, or both"),
            (self.tasks is None and self.include_path is not None, "`include_path` needs `tasks`"),
            (self.tasks is None and self.num_fewshot is not None, "`num_fewshot` needs `tasks`"),
            (self.data_dir is None and self.prompt_style is not None, "`prompt_style` needs `data_dir`"),
            (len(self.models) < 2, "`models` takes at least two folders, as in `[base, finetuned]`"),
        ]


@dataclass(frozen=True)
class ChallengeCheckArgs(Checked):
    """Which server to check"""

    url: str = "http://localhost:8080"
    """Address of the server."""
    timeout: float = 300
    """Seconds that it may take to answer."""
    context: int = 2048
    """Tokens of a prompt and its continuation that it must take."""

    def rules(self) -> list[tuple[bool, str]]:
        return [
            *self.below(0, "timeout", "context"),
            (not self.url.startswith(("http://", "https://")), f"`url` must begin with http:// or https://, found {self.url}"),
        ]
