"""A decoder-only transformer whose parts are chosen by `Config`.

B batch, T tokens, C = n_embd, nh query heads, ng key/value heads, hs head size, S slots of the key/value cache.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_llm.model.attention import Documents, _attend, _softcap
from lit_llm.model.config import Config
from lit_llm.model.kv_cache import KVCache
from lit_llm.model.recompute import recipes_for_results, recomputed
from lit_llm.model.rope import Rope, rotate

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
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.learned_positions else None
        self.h = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.norm = Norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.lm_head_bias)
        if config.tie_embeddings:
            self.lm_head.weight = self.wte.weight
        self.rope = self.local_rope = None
        if config.rotary_size:
            self.rope = Rope(config.rotary_size, config.rope_theta, config.rope_scaling)
        if config.local_rope_theta is not None:
            self.local_rope = Rope(config.rotary_size, config.local_rope_theta, None)
        self.fingerprint: str | None = None  # of the weights that were loaded
        self.activation_checkpointing = False
        self.run_block: Callable[..., Tensor] = _run_block  # `compiling.py` replaces it for passes without a cache
        self.computes_on: torch.device | None = None  # if its weights are held elsewhere
        self.placement: list[torch.device] | None = None  # of each block, if they lie on several devices

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device if self.computes_on is None else self.computes_on

    @property
    def devices(self) -> list[torch.device]:
        """All that it lies on."""
        return list(dict.fromkeys((self.device, *(self.placement or ()))))

    @property
    def dtype(self) -> torch.dtype:
        """Of queries, keys and values."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return self.wte.weight.dtype

    def make_cache(self, batch_size: int, max_length: int, chunk: int | None = None, int8: bool = False) -> KVCache:
        """Slots on the devices of the blocks; see `KVCache`."""
        return KVCache(self.config, batch_size, max_length, self.placement or self.device, self.dtype, chunk, int8)

    def forward(self, ids: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Logits (B, T, vocab_size) of the next token for integer ids (B, T); see `hidden` for `lengths`."""
        return self.head(self.hidden(ids, lengths))

    def hidden(
        self,
        ids: Tensor,
        lengths: Sequence[int] | None = None,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states (B, T, C), normalised, from which `head` makes logits.

        Args:
            ids: (B, T) integers. Rows may be padded on the right: causal attention keeps padding out of what precedes it.
            lengths: Lengths of documents that lie end to end in one row (B = 1, T = sum). Each attends to itself alone
                and its positions start at 0.
            cache: Filled with the keys and values of `ids`. Without `positions` it is filled from its beginning.
            positions: (B, T), where in the cache `ids` lie, ascending; each attends to all up to its own position.
            ends: (B,), lengths of the rows, if they are padded and fill a cache: rings and some types of RoPE go by them.
        """
        where, length = _positions(ids, lengths, positions, ends)
        mask = window_mask = None
        if positions is not None:
            assert cache is not None
            mask = cache.mask(positions, False, self.dtype)
            window_mask = mask if cache.window is None else cache.mask(positions, True, self.dtype)
        rope = None if self.rope is None else self.rope(where, length)
        local_rope = rope if self.local_rope is None else self.local_rope(where, length)
        documents = None if lengths is None else Documents(lengths, ids.device)
        no_rope_layers = self.config.no_rope_layers or ()
        x = self.embed(ids, where)
        with recipes_for_results():
            for i, block in enumerate(self.h):
                if self.placement is not None and self.placement[i] != x.device:
                    x, rope, local_rope, documents, mask, window_mask, positions, ends = _moved(
                        (x, rope, local_rope, documents, mask, window_mask, positions, ends), self.placement[i]
                    )
                sliding = self.config.is_sliding(i)
                layer_rope = None if i in no_rope_layers else local_rope if sliding else rope
                store = None
                if cache is not None:
                    store = partial(cache.fill, i, ends) if positions is None else partial(cache.write, i, positions)
                inputs = (x, layer_rope, documents, store, window_mask if sliding else mask)
                recompute = self.activation_checkpointing and torch.is_grad_enabled()
                run = self.run_block if cache is None else _run_block
                x = checkpoint(run, block, *inputs, use_reentrant=False) if recompute else run(block, *inputs)
        return self.norm(x if self.placement is None else x.to(self.device))

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(B, T, C) from ids (B, T) at positions (T,) or (B, T)."""
        x = self.wte(ids)
        if self.config.scale_embeddings:
            x = x * torch.tensor(self.config.n_embd**0.5, dtype=x.dtype)  # rounded like the weights, as in training
        return x if self.wpe is None else x + self.wpe(positions)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocab_size) from final hidden states (..., C)."""
        logits = self.lm_head(hidden)
        return logits if self.config.logit_softcap is None else _softcap(logits, self.config.logit_softcap)


def _positions(
    ids: Tensor, lengths: Sequence[int] | None, positions: Tensor | None, ends: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Position of each token in its sequence, (T,) or (B, T), and the length of that sequence, which broadcasts to it."""
    if positions is not None:
        return positions, positions.amax(dim=1, keepdim=True) + 1
    where = torch.arange(ids.size(1), device=ids.device)
    if lengths is None:
        return where, torch.tensor(ids.size(1), device=ids.device) if ends is None else ends[:, None]
    n = torch.tensor(list(lengths), device=ids.device)
    start = (n.cumsum(0) - n).repeat_interleave(n, output_size=ids.size(1))
    return where - start, n.repeat_interleave(n, output_size=ids.size(1))


def _moved(values: Any, device: torch.device) -> Any:
    """What blocks are given, on another device: tensors, tuples of them, None."""
    if isinstance(values, tuple):
        return tuple(_moved(value, device) for value in values)
    return None if values is None else values.to(device)


def _run_block(block: nn.Module, *inputs: Any) -> Tensor:
    return block(*inputs)


class Block(nn.Module):
    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.parallel = config.parallel_residual
        self.norm_1 = Norm(config) if config.pre_norm else nn.Identity()
        self.attn = CausalSelfAttention(config, layer)
        self.post_attn_norm = Norm(config) if config.post_norm else nn.Identity()
        self.shared_norm = config.shared_attention_norm
        self.norm_2 = Norm(config) if config.pre_norm and not self.shared_norm else nn.Identity()
        self.mlp = MoE(config) if config.has_experts(layer) else MLPS[config.mlp](config)
        self.post_mlp_norm = Norm(config) if config.post_norm else nn.Identity()

    def forward(self, x: Tensor, *attn_args) -> Tensor:
        h = self.norm_1(x)
        a = self.post_attn_norm(self.attn(h, *attn_args))
        if self.parallel:
            return x + a + self.mlp(h if self.shared_norm else self.norm_2(x))
        x = x + a
        return x + self.post_mlp_norm(self.mlp(self.norm_2(x)))


class CausalSelfAttention(nn.Module):
    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.head_size = hs = config.head_size
        self.clip = config.clip_qkv
        self.scale = config.attention_scale
        self.softcap = config.attention_softcap
        self.window = config.sliding_window if config.is_sliding(layer) else None
        self.qk_norm = config.qk_norm
        self.q = nn.Linear(config.n_embd, config.n_head * hs, bias=config.attn_bias)
        self.k = nn.Linear(config.n_embd, config.n_query_groups * hs, bias=config.attn_bias)
        self.v = nn.Linear(config.n_embd, config.n_query_groups * hs, bias=config.attn_bias)
        self.o = nn.Linear(config.n_head * hs, config.n_embd, bias=config.attn_out_bias)
        if self.qk_norm is not None:
            self.q_norm = _qk_norm(config, config.n_head)
            self.k_norm = _qk_norm(config, config.n_query_groups)
        self.adapter: nn.Module | None = None  # what a method adds to the output of the heads; see methods/adapter.py

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        documents: "Documents | None",
        store: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None,
        mask: Tensor | None,
    ) -> Tensor:
        """(B, T, C) from x (B, T, C). `store` takes keys and values into a cache and returns those to attend to."""
        B, T, _ = x.shape
        q, (k, v) = self.heads(self.q(x), "q_norm"), self.keys_and_values(x)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if store is not None:
            k, v = store(k, v)
        y = _attend(q, k, v, documents, mask, self.window, self.scale, self.softcap)
        if self.adapter is not None:
            y = y + self.adapter(self, q)
        return self.o(y.transpose(1, 2).reshape(B, T, -1))

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys without positions, and values, (B, ng, T, hs) each, for x (B, T, C)."""
        return self.heads(self.k(x), "k_norm"), self.heads(self.v(x))

    def heads(self, y: Tensor, norm: str | None = None) -> Tensor:
        """A projection (B, T, heads * hs), clipped and normalised as the family does, as (B, heads, T, hs)."""
        if self.clip is not None:
            y = y.clamp(-self.clip, self.clip)
        if norm is not None and self.qk_norm == "row":
            y = getattr(self, norm)(y)
        y = y.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
        return getattr(self, norm)(y) if norm is not None and self.qk_norm in ("head", "each_head") else y

    def attend_to_all(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of queries (B, nh, T, hs) to all of the keys and values (B, ng, S, hs)."""
        mask = torch.ones(1, k.size(2), dtype=torch.bool, device=q.device)
        return _attend(q, k, v, None, mask, None, self.scale, self.softcap)


class GatedMLP(nn.Module):
    def __init__(self, config: Config, size: int | None = None) -> None:
        super().__init__()
        size = config.intermediate_size if size is None else size
        self.activation = ACTIVATIONS[config.activation]
        self.gate = nn.Linear(config.n_embd, size, bias=config.mlp_bias)
        self.up = nn.Linear(config.n_embd, size, bias=config.mlp_bias)
        self.down = nn.Linear(size, config.n_embd, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(recomputed(self.gated, self.gate(x), self.up(x)))

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.activation(gate) * up


class PlainMLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = nn.Linear(config.n_embd, config.intermediate_size, bias=config.mlp_bias)
        self.down = nn.Linear(config.intermediate_size, config.n_embd, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(recomputed(self.activation, self.up(x)))


MLPS = {"gated": GatedMLP, "plain": PlainMLP}


class MoE(nn.Module):
    """Each token passes through `n_expert_per_token` of the experts, weighted by the router (https://arxiv.org/abs/2401.04088)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_chosen = config.n_expert_per_token
        self.normalize = config.normalize_expert_weights
        self.router = nn.Linear(config.n_embd, config.n_expert, bias=False)
        self.experts = nn.ModuleList(GatedMLP(config, config.expert_size) for _ in range(config.n_expert))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)  # (N, C)
        weights, chosen = self.router(flat).softmax(-1, dtype=torch.float32).topk(self.n_chosen)  # (N, n_chosen)
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)  # token-expert pairs, those of one expert together
        tokens, weights = order // self.n_chosen, weights.flatten()[order, None].to(x.dtype)
        counts = chosen.flatten().bincount(minlength=len(self.experts)).tolist()  # waits for the GPU, once per layer
        outputs = [
            expert(rows)
            for expert, rows in zip(self.experts, flat[tokens].split(counts), strict=True)
            # In training an expert without tokens runs too: all ranks must have a gradient, even if it is zero.
            if self.training or len(rows)
        ]
        return torch.zeros_like(flat).index_add(0, tokens, torch.cat(outputs) * weights).view_as(x)


class Norm(nn.Module):
    """RMSNorm or LayerNorm, computed in float32 and returned in the dtype of the input."""

    def __init__(self, config: Config, size: int | None = None, bias: bool | None = None) -> None:
        super().__init__()
        self.kind, self.eps, self.size = config.norm, config.norm_eps, size or config.n_embd
        self.weight = None if self.kind == "layer_fixed" else nn.Parameter(torch.ones(self.size))
        self.bias = nn.Parameter(torch.zeros(self.size)) if (config.norm_bias if bias is None else bias) else None

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self.normalized, x, self.weight, self.bias)

    def normalized(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        weight = None if weight is None else weight.float()
        bias = None if bias is None else bias.float()
        if self.kind in ("layer", "layer_fixed"):
            return F.layer_norm(x.float(), (self.size,), weight, bias, self.eps).to(x.dtype)
        if weight is not None and self.kind == "rms_plus_one":
            weight = weight + 1
        return F.rms_norm(x.float(), (self.size,), weight, self.eps).to(x.dtype)


class HeadNorms(nn.ModuleList):
    """One norm without bias for each head of (B, heads, T, hs); a list, because upstream has one tensor for each."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([norm(head) for norm, head in zip(self, x.split(1, dim=1), strict=True)], dim=1)


def _qk_norm(config: Config, n_heads: int) -> nn.Module:
    if config.qk_norm == "row":
        return Norm(config, n_heads * config.head_size)
    if config.qk_norm == "each_head":
        return HeadNorms(Norm(config, config.head_size, bias=False) for _ in range(n_heads))
    return Norm(config, config.head_size)
