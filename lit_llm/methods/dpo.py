"""Direct preference optimisation (https://arxiv.org/abs/2305.18290) with LoRA: the reference is the same model with the
adapter switched off, so there is no second copy. A run that starts from an adapter keeps a copy of it for the reference.

P pairs of a micro-batch, whose documents are chosen and rejected answer in turn.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llm.data.batches import MicroBatch
from lit_llm.errors import OptionError
from lit_llm.methods.lora import LoRA, Update, switched_off
from lit_llm.methods.loss import document_log_probs
from lit_llm.model.gpt import GPT


class DPO(LoRA):
    """LoRA, and an adapter that loads as LoRA's: only the loss differs."""

    columns = ("reward_margin", "reward_accuracy")
    documents_per_example = 2
    reference_passes = 1

    def __init__(self, beta: float = 0.1, **lora: Any) -> None:
        super().__init__(**lora)
        self.beta = beta

    def start(self, model: GPT) -> None:
        """Make the model that training starts from, with its adapter, the reference."""
        if self.modules_to_save:
            names = ", ".join(self.modules_to_save)
            raise OptionError(
                f"the adapter of `init_from` trains {names} in full, so that DPO would need a second copy of the model as its "
                "reference. Merge it with scripts/merge_lora.py and use the result as `checkpoint_dir`"
            )
        for module in model.modules():
            if isinstance(module, Update):
                module.keep_start()

    def loss(self, model: GPT, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the loss over pairs (eq. 7), and sums of the reward margin in nats and of the pairs ranked rightly."""
        with torch.no_grad(), switched_off(model):
            reference = document_log_probs(model, batch)  # (2 P,)
        rewards = self.beta * (document_log_probs(model, batch) - reference)
        margins = rewards[0::2] - rewards[1::2]  # (P,)
        shown = {"reward_margin": margins.detach().sum(), "reward_accuracy": (margins.detach() > 0).sum()}
        return -F.logsigmoid(margins).sum(), shown
