"""Attention of one layer: causal, over packed documents, in a sliding window, with softcapped scores.

B batch, T tokens, nh query heads, ng key/value heads, hs head size, S keys (T of them, or slots of the key/value cache).
"""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llm.model.config import Config
from lit_llm.model.kv_cache import KVCache


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: "Documents | None",
    mask: Tensor | None,
    window: int | None,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Return softmax(scale * q k^T) v, (B, nh, T, hs); nh / ng query heads share a key/value head. Values, and the result, may
    have another head size.

    `sinks` (nh,) are further scores in the softmax, which belong to no key.

    Queries attend causally within `window` or within each of `documents`; or, with a `mask` (..., T, S), to the keys where it
    is True (or to all, with the mask added to the scores). A single query without a mask attends to all keys.
    """
    if documents is not None:
        return documents.attend(q, k, v, window, scale, softcap, sinks)
    if mask is None and window is not None and q.size(2) > window:
        return _attend_in_window(q, k, v, window, scale, softcap, sinks)
    if softcap is not None or sinks is not None:
        return _attend_unfused(q, k, v, mask, scale, softcap, sinks)
    gqa = q.size(1) != k.size(1)
    causal = mask is None and q.size(2) > 1
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=gqa)


class Documents:
    """Documents laid end to end in one row. Opaque to torch.compile, which therefore does not recompile for other lengths."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        # Document i has the tokens bounds[i] to bounds[i + 1] - 1.
        self.bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)

    def to(self, device: torch.device) -> "Documents":
        return Documents(self.lengths, device)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float | None, softcap: float | None,
        sinks: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend causally within each document. `compiled_blocks.py` keeps this method out of compiled code."""
        if softcap is None and sinks is None and _runs_varlen(q):
            return _attend_varlen(q, k, v, self, window, scale)
        return _attend_by_document(q, k, v, self, window, scale, softcap, sinks)


def in_chunks(documents: Documents | None, n: int, chunk: int, device: torch.device) -> Documents | None:
    """Cut documents, or the one of n tokens, into chunks that attend to themselves. None: it is one chunk."""
    lengths = [n] if documents is None else documents.lengths
    if max(lengths) <= chunk:
        return documents
    return Documents([min(chunk, length - start) for length in lengths for start in range(0, length, chunk)], device)


def _attend_by_document(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None, scale: float | None, softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """Run one causal attention per document, where no kernel handles all of them at once."""
    parts = zip(*(x.split(documents.lengths, dim=2) for x in (q, k, v)), strict=True)
    return torch.cat([attend(q, k, v, None, None, window, scale, softcap, sinks) for q, k, v in parts], dim=2)


def _runs_varlen(q: Tensor) -> bool:
    """Return True if FlashAttention (https://arxiv.org/abs/2205.14135) supports these queries over several documents."""
    fits = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.size(3) % 8 == 0 and q.size(3) <= 256
    return fits and q.size(0) == 1 and torch.__version__ >= "2.13" and torch.cuda.get_device_capability(q.device) >= (8, 0)


def _attend_varlen(q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None, scale: float | None) -> Tensor:
    """Run one kernel over all documents. It expects (T, heads, hs).

    A dense T x T mask would compute sum(n)^2 scores of which only sum(n^2) count; the kernel computes those alone.
    """
    from torch.nn.attention.varlen import varlen_attn

    v_size = v.size(-1)
    v = F.pad(v, (0, q.size(-1) - v_size))  # the kernel has one head size
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    left = -1 if window is None else window - 1  # keys before its own position that a query attends to
    bounds, longest, gqa = documents.bounds, max(documents.lengths), q.size(1) != k.size(1)
    y = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=(left, 0), enable_gqa=gqa)
    assert isinstance(y, Tensor)
    return y.transpose(0, 1)[None, ..., :v_size]


def _attend_in_window(
    q: Tensor, k: Tensor, v: Tensor, window: int, scale: float | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Attend causally to the last `window` positions, in blocks of queries.

    A T x T mask would cost T^2 scores. A block of queries start..stop-1 needs only the keys start-window+1..stop-1, so that all
    blocks together cost about 2 * T * window. Blocks of fewer than 256 queries would be dominated by the calls.
    """
    T, outputs = q.size(2), []
    for start in range(0, T, max(window, 256)):
        stop = min(start + max(window, 256), T)
        first = max(start - window + 1, 0)
        queries, keys = (torch.arange(*span, device=q.device) for span in ((start, stop), (first, stop)))
        mask = (keys <= queries[:, None]) & (keys > queries[:, None] - window)
        k_block, v_block = k[:, :, first:stop], v[:, :, first:stop]
        outputs.append(attend(q[:, :, start:stop], k_block, v_block, None, mask, None, scale, softcap, sinks))
    return torch.cat(outputs, dim=2)


def _attend_unfused(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Attend with bounded scores (https://arxiv.org/abs/2408.00118, section 2) or sinks (https://arxiv.org/abs/2309.17453),
    which no fused kernel computes."""
    grouped = q.unflatten(1, (k.size(1), -1))  # (B, ng, nh / ng, T, hs)
    scores = grouped @ k[:, :, None].transpose(-1, -2) * (q.size(-1) ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = soft_capped(scores, softcap)  # before the mask: capped, -inf would become -softcap
    if mask is None and q.size(2) > 1:
        mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        mask = mask.unsqueeze(-3)
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        sink = sinks.to(scores.dtype).view(k.size(1), -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, sink), dim=-1)
    weights = scores.softmax(-1, dtype=torch.float32)[..., : k.size(2)]
    return (weights.to(v.dtype) @ v[:, :, None]).flatten(1, 2)


def soft_capped(x: Tensor, cap: float) -> Tensor:
    """Return x bounded to (-cap, cap): close to x near 0 and, unlike after a clamp, with a gradient everywhere."""
    return cap * torch.tanh(x / cap)


class AttentionInputs(NamedTuple):
    """Inputs that all layers of one forward pass read next to the hidden states.

    The first of a pair is for layers that attend to all positions, the second for layers with a sliding window.
    """

    ropes: tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]
    """cos and sin, see `Rope.forward`."""
    query_scale: Tensor | None
    masks: tuple[Tensor | None, Tensor | None]
    """See `KVCache.masks`."""
    of_keys: Tensor | None
    """Dimensions that ALiBi adds to keys, see `Alibi.of_keys`. None if there is no ALiBi, or the masks hold its biases."""
    documents: Documents | None
    in_document: Tensor | None
    """Position of each token in its document, (T,). None: no `documents`."""
    positions: Tensor | None
    ends: Tensor | None

    def to(self, device: torch.device) -> "AttentionInputs":
        return AttentionInputs(*_moved(tuple(self), device))

    def of_layer(self, layer: int, config: Config, cache: KVCache | None) -> tuple[Any, ...]:
        """Return rope, query_scale, documents, store, mask and of_keys as `CausalSelfAttention` expects them; for a layer
        without attention, in_document and its state."""
        if config.mixer(layer) != "attn":
            return self.in_document, None if cache is None else cache.state(layer, self.positions is None, self.ends)
        sliding = config.is_sliding(layer)
        rope = self.ropes[sliding] if config.has_rope(layer) else None
        grows = rope is None or not config.query_growth_without_rope
        if cache is None:
            store = None
        elif self.positions is None:
            store = partial(cache.fill, layer, self.ends)
        else:
            store = partial(cache.write, layer, self.positions)
        return rope, self.query_scale if grows else None, self.documents, store, self.masks[sliding], self.of_keys


def _moved(values: Any, device: torch.device) -> Any:
    """Move tensors and documents, also in nested tuples, to a device. None stays None."""
    if isinstance(values, tuple):
        return tuple(_moved(value, device) for value in values)
    return None if values is None else values.to(device)


def query_scale(positions: Tensor, config: Config) -> Tensor | None:
    """Return the factors of queries at positions (T,) or (B, T), as (T, 1) or (B, 1, T, 1): see `Config.query_growth`."""
    if config.query_growth is None or config.query_growth_length is None:
        return None
    n = (positions + config.query_growth_offset).div(config.query_growth_length, rounding_mode="floor").float()
    scale = 1 + config.query_growth * n.log1p()[..., None]
    return scale if scale.dim() == 2 else scale[:, None]


def positions_in_sequences(
    ids: Tensor, lengths: Sequence[int] | None, positions: Tensor | None, ends: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the position of each token in its sequence, (T,) or (B, T), and the length of that sequence, broadcastable to it.

    Documents of `lengths` 2 and 3 have the positions 0 1 0 1 2 and the lengths 2 2 3 3 3. See `GPT.hidden` for the arguments.
    """
    if positions is not None:
        return positions, positions.amax(dim=1, keepdim=True) + 1
    where = torch.arange(ids.size(1), device=ids.device)
    if lengths is None:
        return where, torch.tensor(ids.size(1), device=ids.device) if ends is None else ends[:, None]
    n = torch.tensor(list(lengths), device=ids.device)
    start = (n.cumsum(0) - n).repeat_interleave(n, output_size=ids.size(1))
    return where - start, n.repeat_interleave(n, output_size=ids.size(1))
