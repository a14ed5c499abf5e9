"""State of layers without attention: what they keep of the tokens before, in the same memory however many there are.

B rows, T tokens, C features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_llm.model.config import Config


class LayerState(NamedTuple):
    """State of one layer before a pass of the model, and after it."""

    tensors: tuple[Tensor, ...]
    """Parts of the state, each with all rows of the cache, (n_rows, ...)."""
    starts: bool
    """The pass starts at position 0: the state before it is zero, whatever the rows held."""
    ends: Tensor | None
    """(B,), number of tokens of each row in this pass; the others are padding. None: all."""

    def read(self, part: int, n_rows: int) -> Tensor:
        """Return a part of the state before the pass, (n_rows, ...)."""
        kept = self.tensors[part][:n_rows]
        return torch.zeros_like(kept) if self.starts else kept

    def write(self, part: int, new: Tensor) -> None:
        """Set a part of the state of the first rows, (B, ...)."""
        self.tensors[part][: len(new)] = new

    def last(self, x: Tensor, n: int) -> Tensor:
        """Return the last n tokens of each row that are not padding, (B, n, C), of x (B, n + T, C)."""
        if self.ends is None:
            return x[:, x.size(1) - n :]
        index = self.ends[:, None] + torch.arange(n, device=x.device)  # (B, n)
        return x.gather(1, index[..., None].expand(-1, -1, x.size(2)))


def empty_state(config: Config, layer: int, n_rows: int, device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the parts of the state of a layer, all zero; none if it has attention."""
    if config.mixer(layer) == "attn":
        return ()
    keys, values = config.delta_sizes
    n_convolved = config.n_embd if config.mixer(layer) == "conv" else 2 * keys + values
    convolved = torch.zeros(n_rows, config.conv_size - 1, n_convolved, device=device, dtype=dtype)
    if config.mixer(layer) == "conv":
        return (convolved,)
    matrices = (n_rows, config.delta_heads, config.delta_key_size, config.delta_value_size)
    return convolved, torch.zeros(matrices, device=device, dtype=torch.float32)
