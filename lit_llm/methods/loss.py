"""Cross-entropy over the labelled positions only, in chunks, so that no (tokens x vocabulary) tensor ever exists.

M labelled positions, C = n_embd, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_llm.data.batches import MicroBatch
from lit_llm.model.gpt import CHUNK_LOGITS, GPT


def next_token_loss(model: GPT, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of the cross-entropy in nats over the labels of a micro-batch; nothing more to show."""
    hidden = model.hidden(batch.ids, batch.lengths)[0]  # (N, C)
    return cross_entropy_sum(model, hidden[batch.positions], batch.targets), {}


def cross_entropy_sum(model: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    """Sum over M of -log softmax(head(hidden))[targets], float32, for hidden (M, C) and targets (M,).

    With a frozen head the gradient of `hidden` is made chunk by chunk in the forward pass, where the logits are at hand;
    with a trained head each chunk's logits are computed again in the backward pass.
    """
    chunk = max(1, CHUNK_LOGITS // model.config.vocab_size)
    if not torch.is_grad_enabled():
        return _sum_of_chunks(model, hidden, targets, chunk)
    if any(p.requires_grad for p in model.lm_head.parameters()):
        losses = [
            checkpoint(_chunk_loss, model, h, t, use_reentrant=False)
            for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
        ]
        return torch.stack(losses).sum() if losses else hidden.sum() * 0.0
    return _FrozenHead.apply(hidden, targets, model, chunk)


def _chunk_loss(model: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model.head(hidden).float(), targets, reduction="sum")


def _sum_of_chunks(model: GPT, hidden: Tensor, targets: Tensor, chunk: int) -> Tensor:
    total = torch.zeros((), device=hidden.device)
    for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        total += _chunk_loss(model, h, t)
    return total


class _FrozenHead(torch.autograd.Function):
    """A sum of losses whose gradient with respect to `hidden` is ready when the forward pass ends."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, model: GPT, chunk: int) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        grad = torch.empty_like(hidden)
        for h, t, g in zip(hidden.split(chunk), targets.split(chunk), grad.split(chunk), strict=True):
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                loss = _chunk_loss(model, h, t)
            g.copy_(torch.autograd.grad(loss, h)[0])
            total += loss.detach()
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grad_outputs[0], None, None, None


def document_log_probs(model: GPT, batch: MicroBatch) -> Tensor:
    """Sum of the log-probabilities of the labels of each document, (documents,) float32.

    The logits of a chunk are computed again in the backward pass.
    """
    hidden = model.hidden(batch.ids, batch.lengths)[0][batch.positions]  # (M, C)
    chunk = max(1, CHUNK_LOGITS // model.config.vocab_size)
    parts = [
        checkpoint(_chunk_log_probs, model, h, t, use_reentrant=False)
        for h, t in zip(hidden.split(chunk), batch.targets.split(chunk), strict=True)
    ]
    ends = torch.tensor(batch.lengths, device=hidden.device).cumsum(0)
    document = torch.searchsorted(ends, batch.positions, right=True)  # (M,)
    return torch.zeros(len(ends), device=hidden.device).index_add(0, document, torch.cat(parts))


def _chunk_log_probs(model: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(model.head(hidden).float(), targets, reduction="none")
