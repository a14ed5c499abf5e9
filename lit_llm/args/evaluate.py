"""Options of the eval scripts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_llm.args.base import Checked, Rules, bounds, template_rules
from lit_llm.args.generate import ModelArgs, SplitArgs, WeightsArgs


@dataclass(frozen=True)
class HarnessArgs(SplitArgs, ModelArgs):
    """Model and evaluation"""

    tasks: str | list[str] = field(kw_only=True)
    """Tasks or groups of the harness, e.g. `[hellaswag,truthfulqa_mc2]`."""
    include_path: Path | None = None
    """Folder with more tasks, as YAML files."""
    num_fewshot: int | None = None
    """Solved examples before each question. Default: that of the task."""
    limit: float | None = None
    """Most questions per task; below 1, the share of them."""
    batch_size: int = 8
    """Texts per forward pass."""
    apply_chat_template: bool = False
    """Ask in the style that the model was finetuned with, else in the checkpoint's chat template."""
    prompt_style: str | None = None
    """Style to use instead, with apply_chat_template."""
    template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template as a JSON object, e.g. {"enable_thinking": false}. Default: those of the finetuning."""
    output_file: Path | None = None
    """File for the results, in the JSON format of the harness."""
    log_samples: bool = False
    """Write samples_<task>.jsonl next to output_file: every question with the answer of the model."""

    def rules(self) -> Rules:
        return [
            *super().rules(),
            *template_rules(self),
            *bounds(self, "batch_size", "limit", above=0),
            *bounds(self, "num_fewshot", at_least=0),
            *self.needs("apply_chat_template", "prompt_style", "template_kwargs"),
            *self.needs("output_file", "log_samples"),
        ]


@dataclass(frozen=True)
class PerplexityArgs(ModelArgs):
    """Model and evaluation"""

    data_file: Path = field(kw_only=True)
    """Text file."""
    stride: int | None = None
    """Tokens that each window scores. Below the context, each token is predicted from more tokens, at the cost of more forward
    passes. Default: the context."""
    batch_size: int = 8
    """Windows per forward pass."""

    def rules(self) -> Rules:
        return [*super().rules(), *bounds(self, "stride", "batch_size", above=0)]


@dataclass(frozen=True)
class CompareArgs(WeightsArgs):
    """Models and data to compare them on"""

    models: list[Path] = field(kw_only=True)
    """Folders of checkpoints and adapters, e.g. `[checkpoints/org/base, out/lora/name/final]`; all are compared with the
    first."""
    data_dir: Path | None = None
    """Data folder, whose val.jsonl is answered; for plain texts only the loss is reported."""
    tasks: str | list[str] | None = None
    """Tasks or groups of the evaluation harness, e.g. `[hellaswag,truthfulqa_mc2]`."""
    include_path: Path | None = None
    """Folder with more tasks, as YAML files."""
    num_fewshot: int | None = None
    """Solved examples before each question of a task. Default: that of the task."""
    prompt_style: str | None = None
    """Prompt style of the models that were not finetuned. Default: that of the first finetuned one."""
    template_kwargs: dict[str, Any] | None = None
    """Variables of their chat template as a JSON object, e.g. {"enable_thinking": false}; finetuned models have those of their
    finetuning, and records their own."""
    limit: int | None = None
    """Most rows, and most questions of each task."""
    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    batch_size: int = 8
    """Rows per forward pass."""
    n_resamples: int = 1000
    """Resamples of the rows, for the confidence intervals."""
    seed: int = 1337
    """Seed of the resampling."""

    def rules(self) -> Rules:
        return [
            *super().rules(),
            *template_rules(self),
            *bounds(self, "limit", "max_new_tokens", "batch_size", "n_resamples", above=0),
            *bounds(self, "seed", "num_fewshot", at_least=0),
            (self.data_dir is None and self.tasks is None, "give `data_dir`, `tasks`, or both"),
            *self.needs("tasks", "include_path", "num_fewshot"),
            *self.needs("data_dir", "prompt_style", "template_kwargs"),
            (len(self.models) < 2, "`models` takes at least two folders, e.g. `[base, finetuned]`"),
        ]


@dataclass(frozen=True)
class ChallengeCheckArgs(Checked):
    """Server to check"""

    url: str = "http://localhost:8080"
    """Address of the server."""
    timeout: float = 300
    """Longest time to an answer, in seconds."""
    context: int = 2048
    """Tokens of a prompt and its continuation that it must accept."""

    def rules(self) -> Rules:
        return [
            *bounds(self, "timeout", "context", above=0),
            (not self.url.startswith(("http://", "https://")), f"`url` must begin with http:// or https://, found {self.url}"),
        ]
