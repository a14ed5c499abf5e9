"""Keys and values of the tokens that a model has seen, so that each token passes through it once.

B rows, ng key/value heads, S slots of a layer, hs head size, T tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_llm.model.alibi import Alibi
from lit_llm.model.config import Config
from lit_llm.model.layer_state import LayerState, empty_state


class KVCache:
    """Slots for the keys and values of all layers, allocated once for a whole generation. A layer without attention has none,
    but a state of fixed size, from which no token can be removed.

    Rows are independent: each has its own position, and `put` refills one. Before each call of the model with `positions` the
    caller sets `length`, the number of positions in use over all rows, and `level`: True if each row gets one token, at
    position length - 1. Nothing needs a mask then, and the slots to write are adjacent.

    Args:
        device: One for all layers, or one per layer.
        batch_size: Number of rows. A model that is given fewer rows works on the first ones.
        max_length: Maximum number of positions of a row.
        chunk: Maximum number of tokens of a row per call of the model, its prompt not counted. Layers with a sliding window
            then keep a ring of window + chunk - 1 slots: what the first token of a chunk attends to, and the chunk. None: all
            layers keep all positions.
        int8: Store 8 bits per number, with a scale for each token and head.
    """

    def __init__(
        self,
        config: Config,
        batch_size: int,
        max_length: int,
        device: torch.device | str | Sequence[torch.device],
        dtype: torch.dtype,
        chunk: int | None = None,
        int8: bool = False,
    ) -> None:
        self.window, self.n_rows, self.max_length = config.sliding_window, batch_size, max_length
        self.length, self.level, self.chunked = 0, False, config.chunked
        self.ring = max_length if self.window is None or chunk is None else min(max_length, self.window + chunk - 1)
        devices = [device] * config.n_layer if isinstance(device, (str, torch.device)) else device

        def slots(layer: int, size: int) -> "Slots":
            n_slots = self.ring if config.is_sliding(layer) else max_length
            n_slots = n_slots if config.mixer(layer) == "attn" else 0
            return Slots((batch_size, config.n_query_groups, n_slots, size), devices[layer], dtype, int8)

        self.k = [slots(i, config.head_size) for i in range(config.n_layer)]
        self.v = [slots(i, config.value_size) for i in range(config.n_layer)]
        self.states = [empty_state(config, i, batch_size, devices[i], dtype) for i in range(config.n_layer)]

    def fill(self, layer: int, ends: Tensor | None, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, ng, T, hs) of prompts, from position 0 to `ends` (B,), or all to T; return them.

        Positions after an end are in slots that no query attends to before they are written again.
        """
        for slots, new in ((self.k[layer], k), (self.v[layer], v)):
            kept = new if new.size(2) <= slots.n_slots else _newest(new, ends, slots.n_slots)
            slots[: new.size(0), :, : kept.size(2)] = kept
        return k, v

    def write(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, ng, T, hs) at positions (B, T); return those of all slots in use, (B, ng, S, hs)."""
        n_rows, n_slots = k.size(0), self.k[layer].n_slots
        rows = None if self.level else torch.arange(n_rows, device=k.device)[:, None]
        for slots, new in ((self.k[layer], k), (self.v[layer], v)):
            if rows is None:
                last = (self.length - 1) % n_slots
                slots[:n_rows, :, last : last + 1] = new
            else:
                slots[rows, :, positions % n_slots] = new.transpose(1, 2)
        return self.k[layer].read(n_rows, self.length), self.v[layer].read(n_rows, self.length)

    def state(self, layer: int, starts: bool, ends: Tensor | None) -> LayerState:
        """Return the state of a layer without attention for one pass; see `LayerState` for the arguments."""
        return LayerState(self.states[layer], starts, ends)

    def masks(
        self, positions: Tensor | None, dtype: torch.dtype, alibi: Alibi | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return what to add to the scores of queries at `positions` (B, T), ascending: 0 or -inf, (B, 1, T, S); with `alibi`
        its biases or -inf, (B, nh, T, S).

        The first is for layers that attend to all positions, the second for layers with a sliding window. None is 0 everywhere;
        prompts, which have no `positions`, are masked by causality alone.
        """
        if positions is None:
            return None, None
        full = self._mask(positions, False, dtype, alibi)
        return full, full if self.window is None else self._mask(positions, True, dtype, alibi)

    def _mask(self, positions: Tensor, sliding: bool, dtype: torch.dtype, alibi: Alibi | None) -> Tensor | None:
        all_in_ring = self.ring == min(self.max_length, self.window or 0) and not self.chunked
        all_visible = self.level and (not sliding or all_in_ring)
        if all_visible and alibi is None:
            return None
        held = torch.arange(min(self.length, self.ring) if sliding else self.length, device=positions.device)[None]
        if sliding:
            held = _held(positions[:, -1:], held, self.ring)
        visible = self._visible(positions[:, None, :, None], held[:, None, None], sliding)
        scores = torch.zeros(visible.shape, device=visible.device) if alibi is None else alibi.of_pairs(positions, held)
        return scores.to(dtype).masked_fill(~visible, -torch.inf)

    def _visible(self, query: Tensor, held: Tensor, sliding: bool) -> Tensor:
        """Return True where a query attends to the position that a slot holds."""
        if not sliding:
            return held <= query
        assert self.window is not None
        first = query - query % self.window if self.chunked else query - self.window + 1
        return (held >= 0) & (held <= query) & (held >= first)

    def put(self, row: int | slice, other: "KVCache", other_row: int = 0) -> None:
        """Copy a row of `other` to `row` (to all of a slice). `other` may have fewer positions, but not more."""
        assert other.max_length <= self.max_length
        for own, theirs in zip((*self.k, *self.v), (*other.k, *other.v), strict=True):
            own[row, :, : theirs.n_slots] = theirs.read(other_row + 1, theirs.n_slots)[other_row]
        for own, theirs in zip(self._state_tensors(), other._state_tensors(), strict=True):
            own[row] = theirs[other_row]

    def clear(self, row: int) -> None:
        """Zero a row that contains NaN: even where it is masked, it would spoil the sum (0 * NaN is NaN)."""
        for slots in (*self.k, *self.v):
            slots[row] = torch.zeros_like(slots.values[row], dtype=slots.dtype)
        for tensor in self._state_tensors():
            tensor[row] = 0

    def stay(self) -> None:
        """Promise the compiler that the slots never move: CUDA graphs write to fixed addresses."""
        for slots in (*self.k, *self.v):
            for tensor in (slots.values, slots.scale):
                if tensor is not None:
                    torch._dynamo.mark_static_address(tensor)
        for tensor in self._state_tensors():
            torch._dynamo.mark_static_address(tensor)

    def n_bytes(self) -> int:
        return sum(slots.n_bytes() for slots in (*self.k, *self.v)) + sum(tensor.nbytes for tensor in self._state_tensors())

    def _state_tensors(self) -> list[Tensor]:
        return [tensor for tensors in self.states for tensor in tensors]


class Slots:
    """Keys or values of one layer: `shape` (B, ng, S, hs), in `dtype`, or in 8 bits with a scale per token and head."""

    def __init__(self, shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype, int8: bool) -> None:
        self.dtype, self.n_slots = dtype, shape[2]
        self.values = torch.zeros(shape, device=device, dtype=torch.int8 if int8 else dtype)
        self.scale = torch.zeros((*shape[:3], 1), device=device, dtype=torch.float32) if int8 else None

    def __setitem__(self, index: int | tuple, new: Tensor) -> None:
        if self.scale is None:
            self.values[index] = new
            return
        # x is about q * scale with q = round(x / scale), and scale maps the largest |x| of the hs numbers to 127.
        scale = (new.abs().amax(-1, keepdim=True).float() / 127).clamp(min=torch.finfo(torch.float32).tiny)
        self.scale[index] = scale
        self.values[index] = (new / scale).round().to(torch.int8)

    def read(self, n_rows: int, n_slots: int) -> Tensor:
        """Return the first rows and slots, (n_rows, ng, min(n_slots, S), hs)."""
        values = self.values[:n_rows, :, :n_slots]
        return values if self.scale is None else (values * self.scale[:n_rows, :, :n_slots]).to(self.dtype)

    def n_bytes(self) -> int:
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)


def _held(last: Tensor, slots: Tensor, n_slots: int) -> Tensor:
    """Return the position in each slot of a ring after position `last` was written; below 0 for slots not in use.

    Position p is in slot p % n_slots, where it replaces p - n_slots. With 4 slots and last = 5, slots 0 to 3 have 4 5 2 3.
    """
    return last - (last - slots) % n_slots


def _newest(x: Tensor, ends: Tensor | None, n_slots: int) -> Tensor:
    """Return the last tokens of each row of x (B, ng, T, hs), which ends at `ends` (B,), in the order of a ring."""
    last = torch.full((x.size(0), 1), x.size(2) - 1, device=x.device) if ends is None else ends[:, None] - 1
    held = _held(last, torch.arange(n_slots, device=x.device), n_slots)  # (B, n_slots)
    return x.gather(2, held.clamp(min=0)[:, None, :, None].expand(-1, x.size(1), -1, x.size(3)))
