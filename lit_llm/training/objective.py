"""A model with its loss, as one module."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from lit_llm.data.batches import MicroBatch
from lit_llm.methods.method import Loss
from lit_llm.model.gpt import GPT
from lit_llm.training.router_loss import router_loss, watched_routers


class Objective(nn.Module):
    """A model with its loss: the one forward pass that precision and distribution wrap."""

    def __init__(self, gpt: GPT, loss: Loss, neftune_alpha: float | None = None, router_coefficient: float = 0.0) -> None:
        super().__init__()
        self.gpt = gpt
        self.loss = loss
        self.neftune_alpha = neftune_alpha
        self.router_coefficient = router_coefficient

    def forward(self, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.training:
            return self.loss(self.gpt, batch)
        noise = nullcontext() if self.neftune_alpha is None else noisy_embeddings(self.gpt, batch.lengths, self.neftune_alpha)
        with noise:
            return self._with_router_loss(batch) if self.router_coefficient else self.loss(self.gpt, batch)

    def _with_router_loss(self, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss with that of the routers, weighted like a mean over the targets, and both apart, to be shown."""
        with watched_routers(self.gpt) as logits:
            loss, sums = self.loss(self.gpt, batch)
        routers = router_loss(logits, self.gpt.config.n_expert_per_token) * batch.n_targets
        shown = {"train_loss": loss.detach(), "router_loss": routers.detach()}
        return loss + self.router_coefficient * routers, {**sums, **shown}


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
