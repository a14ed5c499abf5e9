"""ALiBi: attention with linear biases in place of positions in the input (https://arxiv.org/abs/2108.12409).

Head i of n adds m_i (p - q) to the score of a query at position q with a key at position p. Softmax does not change if all
scores of a query grow by the same number, so m_i p is as good: a bias of the key alone. It needs no (T, S) tensor, only one
more dimension of the keys, in which all queries have the same number.

B batch, T queries, S keys, nh query heads, hs head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Dimensions added to each head: three hold the bias, the others fill up to the multiple of 8 that fast kernels require.
EXTRA = 8
# What queries have in these dimensions: a power of 2, so that no bit is lost, and so large that keys stay in float16's range.
_FACTOR = 64.0


class Alibi(nn.Module):
    """Biases of keys at given positions.

    The buffer is created on the CPU even under `torch.device("meta")`: it is computed, not loaded.

    Args:
        n_head: n above.
        largest: m_i is 2^(-largest * i / n) for i = 1 .. n; see `slopes`.
        scale: The factor of q k^T.
        rounded: Compute m_i p in bfloat16, and multiply it by `scale`, as Falcon does.
    """

    def __init__(self, n_head: int, largest: float, scale: float, rounded: bool) -> None:
        super().__init__()
        self.scale, self.rounded = scale, rounded
        self.register_buffer("slopes", slopes(n_head, largest), persistent=False)
        self.slopes: Tensor

    def biases(self, positions: Tensor) -> Tensor:
        """Return m_i p in float32, (..., nh, S), for positions (..., S)."""
        if self.rounded:
            # Positions too, as in transformers' models/falcon/modeling_falcon.py, build_alibi_tensor.
            return (self.slopes.bfloat16()[:, None] * positions[..., None, :].bfloat16()).float() * self.scale
        return self.slopes[:, None] * positions[..., None, :]

    def of_keys(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the dimensions to add to keys at positions (..., S), (..., nh, S, EXTRA), for `with_biases`.

        Numbers of bfloat16 have 8 bits: the sum of three keeps the 24 of float32, and kernels sum in float32.
        """
        rest, parts = self.biases(positions) / (_FACTOR * self.scale), []
        for _ in range(3):
            parts.append(rest.to(dtype))
            rest = rest - parts[-1].float()
        return F.pad(torch.stack(parts, dim=-1), (0, EXTRA - len(parts)))

    def of_pairs(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return m_i (p - q) in float32, (B, nh, T, S), for positions of queries (B, T) and keys (1, S) or (B, S).

        Near keys, on which the result depends most, have small biases, which bfloat16 holds well.
        """
        return self.biases(keys)[:, :, None] - self.biases(queries)[..., None]


def slopes(n_head: int, largest: float) -> Tensor:
    """Return m_1 .. m_n, float32: 2^(-largest * i / n) if n is a power of 2.

    Else those of the next lower power of 2, followed by as many as needed of every other one of the next higher
    (https://github.com/ofirpress/attention_with_linear_biases, fairseq/models/transformer.py, get_slopes).
    """
    n = 1 << (n_head.bit_length() - 1)
    exponents = [i / n for i in range(1, n + 1)] + [i / (2 * n) for i in range(1, 2 * n, 2)]
    return torch.tensor([2 ** (-largest * exponent) for exponent in exponents[:n_head]], device="cpu")


def with_biases(q: Tensor, k: Tensor, v: Tensor, of_keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v (B, nh, ..., hs + EXTRA) whose scores, times the scale, have the biases; the last EXTRA dimensions of
    the attention's result are 0.

    Args:
        k, v: (B, ng, S, hs); heads that queries share are repeated, since each query head has its own bias.
        of_keys: As `Alibi.of_keys` returns it, (nh, S, EXTRA) or (B, nh, S, EXTRA).
    """
    if (n_queries := q.size(1) // k.size(1)) > 1:
        k, v = k.repeat_interleave(n_queries, dim=1), v.repeat_interleave(n_queries, dim=1)
    k = torch.cat((k, of_keys.expand(*k.shape[:-1], -1)), dim=-1)
    return F.pad(q, (0, EXTRA), value=_FACTOR), k, F.pad(v, (0, EXTRA))
