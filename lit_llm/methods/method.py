"""The interface of a way of finetuning, for the training loop, the estimates and the adapter folders."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from lit_llm.data.batches import MicroBatch
from lit_llm.methods.loss import next_token_loss
from lit_llm.model.gpt import GPT

Loss = Callable[[GPT, MicroBatch], tuple[Tensor, dict[str, Tensor]]]
"""Sum of the loss over the targets of a micro-batch, and sums of further columns of `metrics.csv` by name."""


class Method:
    """A way of finetuning. A base class for its defaults: a method defines only how it differs from a plain adapter."""

    name: ClassVar[str]
    """Name in `adapter.json`, and of the script in `generate/` that uses the result."""
    trains_base: ClassVar[bool] = False
    """True if the base's own weights train: the result is then a checkpoint, otherwise an adapter folder."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Columns that `loss` adds to `metrics.csv`."""
    documents_per_example: ClassVar[int] = 1
    """2 for preference pairs."""
    reference_passes: ClassVar[int] = 0
    """Forward passes of `loss` without a gradient, in addition to the trained one."""
    init_from: str | None = None
    """Folder of the adapter that the training starts from."""
    in_parts: bool = False
    """True if `devices.fsdp.shard` follows, which makes float32 masters of what each process holds."""

    @property
    def started_as(self) -> str:
        """Name of the model before the training."""
        return "base" if self.init_from is None else "adapter before"

    def attach(self, model: GPT) -> None:
        """Add the method's parameters. The outputs of the model do not change."""
        raise NotImplementedError

    def trainable(self, name: str) -> bool:
        """Return True if the parameter of this name trains: by default those of modules that are named after the method."""
        return f".{self.name}." in name

    def lr_scale(self, name: str) -> float:
        """Factor of the learning rate for the parameter of this name."""
        return 1.0

    def arguments(self) -> dict[str, Any]:
        """Arguments that build an equal method again."""
        return {}

    def loss(self, model: GPT, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a `Loss` of the micro-batch."""
        return next_token_loss(model, batch)

    def start(self, model: GPT) -> None:
        """Note that the parameters now have the values of the adapter that the training starts from."""

    def warning(self, model: GPT) -> str | None:
        """Return a warning about the attached model, to show before training."""
        return None

    def prepare_generation(self, model: GPT) -> None:
        """Compute once what every token would repeat. The method must not train after this."""
