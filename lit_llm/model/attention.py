"""Attention of one layer: causal, over packed documents, in a window, with softcapped scores."""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: "Documents | None",
    mask: Tensor | None,
    window: int | None,
    scale: float | None,
    softcap: float | None,
) -> Tensor:
    """Attention (B, nh, T, hs): causal within `window`, or within each of `documents`; or by a `mask` (..., T, S), true where
    to attend, or added to the scores; or of one query to all keys."""
    if documents is not None:
        return documents.attend(q, k, v, window, scale, softcap)
    if mask is None and window is not None and q.size(2) > window:
        return _attend_in_window(q, k, v, window, scale, softcap)
    if softcap is not None:
        return _attend_softcapped(q, k, v, mask, scale, softcap)
    gqa = q.size(1) != k.size(1)
    causal = mask is None and q.size(2) > 1
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=gqa)


class Documents:
    """Documents that lie end to end in one row. To torch.compile it is opaque: it does not compile anew for other lengths."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)

    def to(self, device: torch.device) -> "Documents":
        return Documents(self.lengths, device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float | None, softcap: float | None) -> Tensor:
        """Causal attention within each document. `compiling.py` keeps it out of what is compiled."""
        if softcap is None and _runs_varlen(q):
            return _attend_varlen(q, k, v, self, window, scale)
        return _attend_by_document(q, k, v, self, window, scale, softcap)


def _attend_by_document(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None, scale: float | None, softcap: float | None
) -> Tensor:
    """One causal attention after the other, where there is no kernel for all of them."""
    parts = zip(*(x.split(documents.lengths, dim=2) for x in (q, k, v)), strict=True)
    return torch.cat([_attend(q, k, v, None, None, window, scale, softcap) for q, k, v in parts], dim=2)


def _runs_varlen(q: Tensor) -> bool:
    """Whether FlashAttention (https://arxiv.org/abs/2205.14135) takes queries of this kind, those of all documents at once."""
    fits = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.size(3) % 8 == 0 and q.size(3) <= 256
    return fits and torch.__version__ >= "2.13" and torch.cuda.get_device_capability(q.device) >= (8, 0)


def _attend_varlen(q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None, scale: float | None) -> Tensor:
    """All documents in one kernel, which takes (T, heads, hs)."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    left = -1 if window is None else window - 1  # how far back from its own position a query sees
    bounds, longest, gqa = documents.bounds, max(documents.lengths), q.size(1) != k.size(1)
    y = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=(left, 0), enable_gqa=gqa)
    assert isinstance(y, Tensor)
    return y.transpose(0, 1)[None]


def _attend_in_window(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float | None, softcap: float | None) -> Tensor:
    """Causal attention to the last `window` positions, for blocks of queries: a T x T mask would waste what a window saves."""
    T, outputs = q.size(2), []
    for start in range(0, T, max(window, 256)):
        stop = min(start + max(window, 256), T)
        first = max(start - window + 1, 0)
        queries, keys = (torch.arange(*span, device=q.device) for span in ((start, stop), (first, stop)))
        mask = (keys <= queries[:, None]) & (keys > queries[:, None] - window)
        k_block, v_block = k[:, :, first:stop], v[:, :, first:stop]
        outputs.append(_attend(q[:, :, start:stop], k_block, v_block, None, mask, None, scale, softcap))
    return torch.cat(outputs, dim=2)


def _attend_softcapped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, softcap: float) -> Tensor:
    """Attention with bounded scores (https://arxiv.org/abs/2408.00118, section 2), which no fused kernel computes."""
    grouped = q.unflatten(1, (k.size(1), -1))  # (B, ng, nh / ng, T, hs)
    scores = grouped @ k[:, :, None].transpose(-1, -2) * (q.size(-1) ** -0.5 if scale is None else scale)
    scores = _softcap(scores, softcap)
    if mask is None and q.size(2) > 1:
        mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        mask = mask.unsqueeze(-3)
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return (scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v[:, :, None]).flatten(1, 2)


def _softcap(x: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(x / cap)
