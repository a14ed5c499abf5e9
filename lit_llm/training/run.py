"""The result of a finetuning run, as `finetune` returns it."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """A finetuning run that has ended: its files, and answers of the model before and after it."""

    folder: Path
    metrics: Path | None = None
    """`metrics.csv`; like the folders below, None if the run did not write it."""
    best: Path | None = None
    """Adapter or checkpoint with the lowest validation loss."""
    final: Path | None = None
    """Adapter or checkpoint after the last step."""
    prompts: list[str] = field(default_factory=list, repr=False)
    """Held-out prompts that were answered."""
    before: list[str] | None = field(default=None, repr=False)
    """Answers of the base, one per prompt. None if it was not asked: under FSDP, in a dry run, and for a run that was
    finished already."""
    after: list[str] | None = field(default=None, repr=False)
    """Answers of the finetuned model."""
    outcome: list[str] = field(default_factory=list)
    """Changes in exact matches and validation loss, one line each."""
