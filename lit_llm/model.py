"""A decoder-only transformer whose parts are chosen by `Config`.

B batch, T tokens, C = n_embd, nh query heads, ng key/value heads, hs head size, S slots of the key/value cache.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_llm.config import Config
from lit_llm.rope import inverse_frequencies, rotate

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class GPT(nn.Module):
    """`model(ids)` returns logits; training and generation use `hidden` and `head`, to make logits only where needed."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = Norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.wte.weight
        self.register_buffer("inv_freq", inverse_frequencies(config), persistent=False)
        self.inv_freq: Tensor
        self.fingerprint: str | None = None  # of the weights that were loaded
        self.activation_checkpointing = False

    def forward(self, ids: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Logits (B, T, vocab_size) of the next token for integer ids (B, T); see `hidden` for `lengths`."""
        return self.head(self.hidden(ids, lengths))

    def hidden(
        self,
        ids: Tensor,
        lengths: Sequence[int] | None = None,
        cache: "KVCache | None" = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states (B, T, C), normalised, from which `head` makes logits.

        Args:
            ids: (B, T) integers. Rows may be padded on the right: causal attention keeps padding out of what precedes it.
            lengths: Lengths of documents that lie end to end in one row (B = 1, T = sum). Each attends to itself alone
                and its positions start at 0.
            cache: Filled with the keys and values of `ids`. Without `positions` it is filled from its beginning.
            positions: (B, T), where in the cache `ids` lie; each attends to all slots up to its own position.
        """
        mask = None
        if positions is not None:
            assert cache is not None
            mask = torch.arange(cache.length, device=ids.device) <= positions[:, None, :, None]  # (B, 1, T, S)
            rope = self.rope(positions)
        elif lengths is not None:
            rope = self.rope(torch.cat([torch.arange(n, device=ids.device) for n in lengths]))
        else:
            rope = self.rope(torch.arange(ids.size(1), device=ids.device))
        x = self.wte(ids)
        for i, block in enumerate(self.h):
            layer_cache = None if cache is None else (cache.k[i], cache.v[i])
            inputs = (x, rope, lengths, layer_cache, positions, mask)
            recompute = self.activation_checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)
        return self.norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocab_size) from final hidden states (..., C)."""
        return self.lm_head(hidden)

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, (T, rotary_size) or (B, 1, T, rotary_size), in float32: half precision has too few positions."""
        angles = positions[..., None].float() * self.inv_freq.float()
        if angles.dim() == 3:
            angles = angles[:, None]  # over heads
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.parallel = config.parallel_residual
        self.norm_1 = Norm(config)
        self.attn = CausalSelfAttention(config)
        self.norm_2 = None if config.shared_attention_norm else Norm(config)
        self.mlp = GatedMLP(config) if config.mlp == "gated" else PlainMLP(config)

    def forward(self, x: Tensor, *attn_args) -> Tensor:
        h = self.norm_1(x)
        a = self.attn(h, *attn_args)
        if self.parallel:
            return x + a + self.mlp(h if self.norm_2 is None else self.norm_2(x))
        x = x + a
        return x + self.mlp(self.norm_2(x))


class CausalSelfAttention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_size = hs = config.head_size
        self.q = nn.Linear(config.n_embd, config.n_head * hs, bias=config.attn_bias)
        self.k = nn.Linear(config.n_embd, config.n_query_groups * hs, bias=config.attn_bias)
        self.v = nn.Linear(config.n_embd, config.n_query_groups * hs, bias=config.attn_bias)
        self.o = nn.Linear(config.n_head * hs, config.n_embd, bias=config.attn_out_bias)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        lengths: Sequence[int] | None,
        cache: tuple[Tensor, Tensor] | None,
        positions: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        B, T, _ = x.shape
        q = self.q(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, nh, T, hs)
        k = self.k(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, ng, T, hs)
        v = self.v(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, ng, T, hs)
        cos, sin = (table.to(q.dtype) for table in rope)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = _write(cache, k, v, positions, mask)
        y = _attend(q, k, v, lengths, mask)
        return self.o(y.transpose(1, 2).reshape(B, T, -1))


def _write(
    cache: tuple[Tensor, Tensor], k: Tensor, v: Tensor, positions: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Store k and v (B, ng, T, hs) in the cache and return what the queries attend to: themselves, or all slots in use."""
    if positions is None or mask is None:
        for slots, new in zip(cache, (k, v), strict=True):
            slots[:, :, : new.size(2)] = new
        return k, v
    rows = torch.arange(k.size(0), device=k.device)[:, None]
    for slots, new in zip(cache, (k, v), strict=True):
        slots[rows, :, positions] = new.transpose(1, 2)
    return cache[0][:, :, : mask.size(-1)], cache[1][:, :, : mask.size(-1)]


def _attend(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int] | None, mask: Tensor | None) -> Tensor:
    """Causal attention (B, nh, T, hs), or where `mask` (B, 1, T, S) is true, or causal within each of `lengths`."""
    gqa = q.size(1) != k.size(1)
    if lengths is None:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=gqa)
    documents = zip(*(x.split(list(lengths), dim=2) for x in (q, k, v)), strict=True)
    return torch.cat(
        [F.scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=gqa) for qkv in documents],
        dim=2,
    )


class GatedMLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.gate = nn.Linear(config.n_embd, config.intermediate_size, bias=config.mlp_bias)
        self.up = nn.Linear(config.n_embd, config.intermediate_size, bias=config.mlp_bias)
        self.down = nn.Linear(config.intermediate_size, config.n_embd, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class PlainMLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = nn.Linear(config.n_embd, config.intermediate_size, bias=config.mlp_bias)
        self.down = nn.Linear(config.intermediate_size, config.n_embd, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Norm(nn.Module):
    """RMSNorm or LayerNorm, computed in float32 and returned in the dtype of the input."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.kind, self.eps = config.norm, config.norm_eps
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.norm_bias else None

    def forward(self, x: Tensor) -> Tensor:
        shape, weight = self.weight.shape, self.weight.float()
        if self.kind == "rms":
            return F.rms_norm(x.float(), shape, weight, self.eps).to(x.dtype)
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), shape, weight, bias, self.eps).to(x.dtype)


class KVCache:
    """Keys and values of all layers, allocated once for a whole generation.

    `k[i]` and `v[i]` of layer i are (B, ng, S, hs). The caller sets `length`, the slots in use, before each call of the model.
    """

    def __init__(
        self, config: Config, batch_size: int, max_length: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        shape = (config.n_layer, batch_size, config.n_query_groups, max_length, config.head_size)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0
