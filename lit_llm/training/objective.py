"""A model with its loss, as one module."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lit_llm.data.batches import MicroBatch
from lit_llm.methods.method import Loss
from lit_llm.model.gpt import GPT


class Objective(nn.Module):
    """A model with its loss: the one forward pass that precision and distribution wrap."""

    def __init__(self, gpt: GPT, loss: Loss, neftune_alpha: float | None = None) -> None:
        super().__init__()
        self.gpt = gpt
        self.loss = loss
        self.neftune_alpha = neftune_alpha

    def forward(self, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        if self.neftune_alpha is None or not self.training:
            return self.loss(self.gpt, batch)
        with noisy_embeddings(self.gpt, batch.lengths, self.neftune_alpha):
            return self.loss(self.gpt, batch)


@contextmanager
def noisy_embeddings(gpt: GPT, lengths: Sequence[int], alpha: float) -> Iterator[None]:
    """Add uniform noise of at most alpha / sqrt(L C) to the embeddings of each document of L tokens (NEFTune,
    https://arxiv.org/abs/2310.05914, algorithm 1)."""

    def add_noise(module: nn.Module, inputs: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        sizes = torch.tensor(lengths, device=embedded.device)
        bound = alpha / (sizes.repeat_interleave(sizes) * embedded.size(-1)).sqrt()  # (N,)
        return embedded + (torch.rand_like(embedded) * 2 - 1) * bound[:, None].to(embedded.dtype)

    hook = gpt.wte.register_forward_hook(add_noise)
    try:
        yield
    finally:
        hook.remove()
