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

from lit_llm.model.alibi import EXTRA, Alibi, with_biases
from lit_llm.model.attention import (
    AttentionInputs,
    Documents,
    attend,
    in_chunks,
    positions_in_sequences,
    query_scale,
    soft_capped,
)
from lit_llm.model.config import Config
from lit_llm.model.delta_net import DeltaNet
from lit_llm.model.experts import MoE
from lit_llm.model.kv_cache import KVCache
from lit_llm.model.norms import Norm, qk_norm
from lit_llm.model.recompute import recipes_for_results, recomputed
from lit_llm.model.rope import Rope, rotate
from lit_llm.model.short_convolution import ShortConvolution

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}

CHUNK_LOGITS = 2**22  # logits held at once: 16 MiB in float32


class GPT(nn.Module):
    """`model(ids)` returns logits; training and generation use `hidden` and `head`, to compute logits only where needed."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.embedding_size or config.n_embd)
        self.wte_norm = Norm(config) if config.embedding_norm else None
        self.project_in = self.project_out = self.wpe = None
        if config.embedding_size is not None:
            self.project_in = nn.Linear(config.embedding_size, config.n_embd, bias=False)
            self.project_out = nn.Linear(config.n_embd, config.embedding_size, bias=False)
        if config.learned_positions:
            self.wpe = nn.Embedding(config.block_size + config.position_offset, config.n_embd)
        self.h = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.norm = Norm(config) if config.final_norm else nn.Identity()
        self.lm_head = nn.Linear(config.embedding_size or config.n_embd, config.vocab_size, bias=config.lm_head_bias)
        if config.tie_embeddings:
            self.lm_head.weight = self.wte.weight
        self.rope = self.local_rope = None
        if config.rotary_size:
            layout = config.rope_interleaved, config.rope_reversed
            self.rope = Rope(config.rotary_size, config.rope_theta, config.rope_scaling, *layout)
        if config.local_rope_theta is not None:
            layout = config.rope_interleaved, config.rope_reversed
            self.local_rope = Rope(config.rotary_size, config.local_rope_theta, None, *layout)
        self.alibi = None
        if config.alibi is not None:
            self.alibi = Alibi(config.n_head, config.alibi, config.score_factor, config.alibi_rounded)
        self.fingerprint: str | None = None  # of the loaded weights
        self.stored_dtypes: dict[str, torch.dtype] = {}  # of each weight in the files that it was loaded from
        self.activation_checkpointing = False
        self.run_block: Callable[..., Tensor] = _run_block  # `compiled_blocks.py` replaces it for passes without a cache
        self.computes_on: torch.device | None = None  # if the weights are kept on another device
        self.placement: list[torch.device] | None = None  # of each block, if they are on several devices

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device if self.computes_on is None else self.computes_on

    @property
    def devices(self) -> list[torch.device]:
        """All devices of the model, the one of embedding and head first."""
        return list(dict.fromkeys((self.device, *(self.placement or ()))))

    @property
    def dtype(self) -> torch.dtype:
        """dtype of queries, keys and values."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return self.wte.weight.dtype

    def make_cache(self, batch_size: int, max_length: int, chunk: int | None = None, int8: bool = False) -> KVCache:
        """Return an empty cache with its slots on the devices of the blocks; see `KVCache`."""
        return KVCache(self.config, batch_size, max_length, self.placement or self.device, self.dtype, chunk, int8)

    def forward(self, ids: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Return logits (B, T, vocab_size) of the next token for integer ids (B, T); see `hidden` for `lengths`."""
        return self.head(self.hidden(ids, lengths))

    def hidden(
        self,
        ids: Tensor,
        lengths: Sequence[int] | None = None,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> Tensor:
        """Return final hidden states (B, T, C), or (B, T, embedding_size), normalised, from which `head` computes logits.

        Args:
            ids: (B, T) integers. Rows may be padded on the right: causal attention hides padding from what precedes it.
            lengths: Lengths of documents laid end to end in one row (B = 1, T = sum). Each attends only to itself, and its
                positions start at 0.
            cache: Receives the keys and values of `ids`. Without `positions` it is filled from its beginning.
            positions: (B, T), positions of `ids` in the cache, ascending; each attends to all up to its own position.
            ends: (B,), lengths of the rows, if they are padded and fill a cache: rings, states of layers without attention, and
                some types of RoPE depend on them.
        """
        assert positions is None or cache is not None
        where, length = positions_in_sequences(ids, lengths, positions, ends)
        inputs = AttentionInputs(
            ropes=self._ropes(where, length),
            query_scale=query_scale(where, self.config),
            masks=(None, None) if cache is None else cache.masks(positions, self.dtype, self.alibi),
            of_keys=None if self.alibi is None or positions is not None else self.alibi.of_keys(where, self.dtype),
            documents=None if lengths is None else Documents(lengths, ids.device),
            in_document=None if lengths is None else where,
            positions=positions,
            ends=ends,
        )
        run = self.run_block if cache is None else _run_block
        if self.activation_checkpointing and torch.is_grad_enabled():
            run = partial(checkpoint, run, use_reentrant=False)
        x = self.embed(ids, where)
        with recipes_for_results():
            for i, block in enumerate(self.h):
                if self.placement is not None and self.placement[i] != x.device:
                    x, inputs = x.to(self.placement[i]), inputs.to(self.placement[i])
                x = run(block, x, *inputs.of_layer(i, self.config, cache))
        x = self.norm(x if self.placement is None else x.to(self.device))
        return x if self.project_out is None else self.project_out(x)

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(B, T, C) from ids (B, T) at positions (T,) or (B, T)."""
        x = self.wte(ids)
        if self.config.scale_embeddings:
            x = x * torch.tensor(self.config.n_embd**0.5, dtype=x.dtype)  # rounded like the weights, as in training
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        if self.project_in is not None:
            x = self.project_in(x)
        if self.wpe is not None:
            x = x + self.wpe(positions + self.config.position_offset)
        return x if self.wte_norm is None else self.wte_norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocab_size) from final hidden states (..., C)."""
        logits = self.lm_head(hidden)
        if self.config.logit_scale != 1:
            logits = logits * self.config.logit_scale
        return logits if self.config.logit_softcap is None else soft_capped(logits, self.config.logit_softcap)

    def _ropes(self, positions: Tensor, length: Tensor) -> Any:
        """cos and sin for layers that attend to all positions, and for layers with a sliding window."""
        rope = None if self.rope is None else self.rope(positions, length)
        return rope, rope if self.local_rope is None else self.local_rope(positions, length)


def _run_block(block: nn.Module, *inputs: Any) -> Tensor:
    return block(*inputs)


class Block(nn.Module):
    """One layer. With n1 .. n4 its norms, each of which a family may lack:

    x = x + n2(attn(n1(x))), then x + n4(mlp(n3(x))); or in parallel, x + attn(n1(x)) + mlp(n3(x)), where n3 may be n1. Both
    results may have a constant factor before they are added to x. Or x = n1(x + attn(x)), then n3(x + mlp(x)).

    In place of attn there may be another part that mixes the tokens, with a name of its own; see `Config.mixer`.
    """

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.parallel, self.scale = config.parallel_residual, config.residual_scale
        self.normalizes_sums = config.residual_norm
        has_norms = config.pre_norm or config.residual_norm
        self.norm_1 = Norm(config) if has_norms else nn.Identity()
        self.mixer = config.mixer(layer)
        self.add_module(self.mixer, _make_mixer(config, layer))
        self.post_attn_norm = Norm(config) if config.post_norm else nn.Identity()
        self.shared_norm = config.shared_attention_norm
        self.norm_2 = Norm(config) if has_norms and not self.shared_norm else nn.Identity()
        self.mlp = MoE(config, partial(GatedMLP, config)) if config.has_experts(layer) else MLPS[config.mlp](config)
        self.post_mlp_norm = Norm(config) if config.post_norm else nn.Identity()

    def forward(self, x: Tensor, *mixer_args) -> Tensor:
        if self.normalizes_sums:
            x = self.norm_1(x + self.mix(x, *mixer_args))
            norm, x = self.norm_2, x + self.mlp(x)
            assert isinstance(norm, Norm)
            # Not recomputed: the next block would ask for it, when FSDP has freed the weights of this one.
            return norm.normalized(x, norm.weight, norm.bias)
        h = self.norm_1(x)
        a = self.post_attn_norm(self.mix(h, *mixer_args))
        if self.parallel:
            return x + self.scaled(a) + self.scaled(self.mlp(h if self.shared_norm else self.norm_2(x)))
        x = x + self.scaled(a)
        return x + self.scaled(self.post_mlp_norm(self.mlp(self.norm_2(x))))

    def mix(self, x: Tensor, *mixer_args) -> Tensor:
        """(B, T, C) in which tokens have read others, from x (B, T, C)."""
        return getattr(self, self.mixer)(x, *mixer_args)

    def scaled(self, y: Tensor) -> Tensor:
        return y if self.scale == 1 else y * self.scale


def _make_mixer(config: Config, layer: int) -> nn.Module:
    if config.mixer(layer) in OTHER_MIXERS:
        return OTHER_MIXERS[config.mixer(layer)](config)
    return (CausalSelfAttention if config.kv_latent_size is None else LatentAttention)(config, layer)


class CausalSelfAttention(nn.Module):
    """Attention of nh query heads to ng key/value heads (https://arxiv.org/abs/2305.13245): nh / ng queries share a key."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.clip = config.clip_qkv
        self.scale = config.score_factor
        self.softcap = config.attention_softcap
        window = config.sliding_window if config.is_sliding(layer) else None
        self.window, self.chunk = (None, window) if config.chunked else (window, None)
        self.interleaved = config.rope_interleaved
        self.normalizes_rows = config.qk_norm == "row"
        self.normalizes_last = config.qk_norm_after_rope
        self.add_projections(config)
        self.o = nn.Linear(config.n_head * config.value_size, config.n_embd, bias=config.attn_out_bias)
        self.q_norm = qk_norm(config, layer, config.n_head)
        self.k_norm = qk_norm(config, layer, config.n_query_groups)
        self.sinks = nn.Parameter(torch.zeros(config.n_head)) if config.attention_sinks else None
        self.o_gate = None
        if config.attention_gate:
            self.o_gate = nn.Linear(config.n_embd, config.n_head * config.value_size, bias=config.attn_bias)
        self.adapter: nn.Module | None = None  # what a method adds to the output of the heads; see methods/adapter.py

    def add_projections(self, config: Config) -> None:
        self.q = nn.Linear(config.n_embd, config.n_head * config.head_size, bias=config.attn_bias)
        self.k = nn.Linear(config.n_embd, config.n_query_groups * config.head_size, bias=config.attn_bias)
        self.v = nn.Linear(config.n_embd, config.n_query_groups * config.head_size, bias=config.attn_bias)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        query_scale: Tensor | None,
        documents: Documents | None,
        store: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None,
        mask: Tensor | None,
        of_keys: Tensor | None,
    ) -> Tensor:
        """(B, T, C) from x (B, T, C). `store` puts keys and values into a cache and returns those to attend to."""
        B, T, _ = x.shape
        q, (k, v) = self.queries(x, rope), self.keys_and_values(x, rope)
        if query_scale is not None:
            q = q * query_scale.to(q.dtype)
        if store is not None:
            k, v = store(k, v)
        if self.chunk is not None and mask is None:
            documents = in_chunks(documents, T, self.chunk, x.device)
        if of_keys is None:
            y = attend(q, k, v, documents, mask, self.window, self.scale, self.softcap, self.sinks)
        else:
            y = attend(*with_biases(q, k, v, of_keys), documents, mask, self.window, self.scale, self.softcap)[..., :-EXTRA]
        if self.adapter is not None:
            y = y + self.adapter(self, q)
        y = y.transpose(1, 2).reshape(B, T, -1)
        return self.o(y if self.o_gate is None else recomputed(_gated, y, self.o_gate(x)))

    def queries(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """Queries (B, nh, T, hs) for x (B, T, C)."""
        return self.heads(self.q(x), self.q_norm, rope)

    def keys_and_values(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Keys, at positions only if `rope` is given, and values, (B, ng, T, hs) each, for x (B, T, C)."""
        return self.heads(self.k(x), self.k_norm, rope), self.heads(self.v(x), None, None)

    def heads(self, y: Tensor, norm: nn.Module | None, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """A projection (B, T, heads * hs), normalised, clipped and rotated as the family does, as (B, heads, T, hs)."""
        if norm is not None and self.normalizes_rows:
            y, norm = norm(y), None
        if self.clip is not None:
            y = y.clamp(-self.clip, self.clip)
        y = y.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
        if norm is not None and not self.normalizes_last:
            y, norm = norm(y), None
        if rope is not None:
            y = rotate(y, *rope, self.interleaved)
        return y if norm is None else norm(y)

    def attend_to_all(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of queries (B, nh, T, hs) to all keys and values (B, ng, S, hs)."""
        mask = torch.ones(1, k.size(2), dtype=torch.bool, device=q.device)
        return attend(q, k, v, None, mask, None, self.scale, self.softcap)


def _gated(y: Tensor, gate: Tensor) -> Tensor:
    return y * gate.sigmoid()


class LatentAttention(CausalSelfAttention):
    """Multi-head latent attention (https://arxiv.org/abs/2405.04434, section 2.1): keys and values, and often queries, are
    projected down to a latent vector and up to heads. RoPE rotates the last dimensions of a head, whose keys all heads share.

    A subclass, because only the projections differ. r = kv_latent_size, n = head_size - rotary_size, vs = value_size.
    """

    def add_projections(self, config: Config) -> None:
        assert config.kv_latent_size is not None
        bias, q_size, eps = config.attn_bias, config.n_head * config.head_size, config.latent_norm_eps
        self.down_parts = [config.kv_latent_size, config.rotary_size]
        self.up_parts = [config.head_size - config.rotary_size, config.value_size]
        self.q_is_latent = config.q_latent_size is not None
        if config.q_latent_size is None:
            self.q = nn.Linear(config.n_embd, q_size, bias=False)
        else:
            self.q_down = nn.Linear(config.n_embd, config.q_latent_size, bias=bias)
            self.q_latent_norm = Norm(config, config.q_latent_size, eps=eps)
            self.q_up = nn.Linear(config.q_latent_size, q_size, bias=False)
        self.kv_down = nn.Linear(config.n_embd, sum(self.down_parts), bias=bias)
        self.kv_latent_norm = Norm(config, config.kv_latent_size, eps=eps)
        self.kv_up = nn.Linear(config.kv_latent_size, config.n_head * sum(self.up_parts), bias=False)

    def queries(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """Queries (B, nh, T, hs) for x (B, T, C)."""
        q = self.q_up(self.q_latent_norm(self.q_down(x))) if self.q_is_latent else self.q(x)
        q = q.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
        q, rotating = q.split([self.up_parts[0], self.down_parts[1]], dim=-1)  # (B, nh, T, n), (B, nh, T, rotary_size)
        return torch.cat((q, self.rotated(rotating, rope)), dim=-1)

    def keys_and_values(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Keys (B, nh, T, hs), at positions only if `rope` is given, and values (B, nh, T, vs), for x (B, T, C)."""
        latent, shared = self.kv_down(x).split(self.down_parts, dim=-1)  # (B, T, r), (B, T, rotary_size)
        heads = self.kv_up(self.kv_latent_norm(latent)).unflatten(-1, (-1, sum(self.up_parts))).transpose(1, 2)
        k, v = heads.split(self.up_parts, dim=-1)  # (B, nh, T, n), (B, nh, T, vs)
        shared = self.rotated(shared[:, None], rope).expand(-1, k.size(1), -1, -1)
        return torch.cat((k, shared), dim=-1), v

    def rotated(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        return x if rope is None else rotate(x, *rope, self.interleaved)


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)), https://arxiv.org/abs/2002.05202. The product is recomputed in the backward pass."""

    def __init__(self, config: Config, size: int | None = None, bias: bool | None = None) -> None:
        super().__init__()
        size = config.intermediate_size if size is None else size
        bias = config.mlp_bias if bias is None else bias
        self.activation, self.limit = ACTIVATIONS[config.activation], config.swiglu_limit
        self.gate = nn.Linear(config.n_embd, size, bias=bias)
        self.up = nn.Linear(config.n_embd, size, bias=bias)
        self.down = nn.Linear(size, config.n_embd, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(recomputed(self.gated, self.gate(x), self.up(x)))

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit) + 1
        return self.activation(gate) * up


class PlainMLP(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        is_trained = config.activation == "xielu"
        self.activation = XIELU() if is_trained else partial(recomputed, ACTIVATIONS[config.activation])
        self.up = nn.Linear(config.n_embd, config.intermediate_size, bias=config.mlp_bias)
        self.down = nn.Linear(config.intermediate_size, config.n_embd, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class XIELU(nn.Module):
    """a x^2 + beta x above 0, b (exp(min(x, eps)) - 1 - x) + beta x below, with a = softplus(alpha_p) and
    b = beta + softplus(alpha_n), which train (https://arxiv.org/abs/2411.13010). Upstream stores the constants as well."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p, self.alpha_n = (nn.Parameter(torch.zeros(1)) for _ in range(2))
        self.beta: Tensor
        self.eps: Tensor
        self.register_buffer("beta", torch.tensor(0.5))
        self.register_buffer("eps", torch.tensor(-1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self.curve, x, self.alpha_p, self.alpha_n)

    def curve(self, x: Tensor, alpha_p: Tensor, alpha_n: Tensor) -> Tensor:
        beta, eps = self.beta.to(x), self.eps.to(x)
        below = (torch.expm1(x.minimum(eps)) - x) * (beta + F.softplus(alpha_n))
        return torch.where(x > 0, F.softplus(alpha_p) * x * x, below) + beta * x


MLPS = {"gated": GatedMLP, "plain": PlainMLP}
OTHER_MIXERS = {"conv": ShortConvolution, "delta": DeltaNet}
