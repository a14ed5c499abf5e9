"""Gated delta nets (https://arxiv.org/abs/2412.06464): a matrix per head maps keys to values, and each token changes it.

With decay a_t and learning rate b_t, S_t = a_t S_(t-1) + k_t (b_t (v_t - a_t S_(t-1)^T k_t))^T, and the head returns S_t^T q_t.

B rows, T tokens, nh heads, ks and vs sizes of keys and values, K = conv_size; N chunks of L tokens.
"""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.model.config import Config
from lit_llm.model.layer_state import LayerState
from lit_llm.model.norms import Norm
from lit_llm.model.recompute import recomputed
from lit_llm.model.short_convolution import CausalConvolution, convolve, preceded

CHUNK = 64  # tokens that are computed at once; the chunks follow each other


class DeltaNet(nn.Module):
    """o(norm(heads) * silu(o_gate(x))), where a short convolution precedes queries, keys and values.

    Several heads may share queries and keys. Each has a learning rate and a decay for every token. Computed in float32.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        keys, values = config.delta_key_heads * config.delta_key_size, config.delta_heads * config.delta_value_size
        self.parts, self.key_size, self.value_size = [keys, keys, values], config.delta_key_size, config.delta_value_size
        self.q = nn.Linear(config.n_embd, keys, bias=False)
        self.k = nn.Linear(config.n_embd, keys, bias=False)
        self.v = nn.Linear(config.n_embd, values, bias=False)
        self.o_gate = nn.Linear(config.n_embd, values, bias=False)
        self.rate = nn.Linear(config.n_embd, config.delta_heads, bias=False)
        self.decay = nn.Linear(config.n_embd, config.delta_heads, bias=False)
        self.conv = CausalConvolution(sum(self.parts), config.conv_size, False)
        self.dt_bias, self.A_log = (nn.Parameter(torch.zeros(config.delta_heads)) for _ in range(2))
        self.norm = Norm(replace(config, norm="rms"), config.delta_value_size, bias=False)
        self.o = nn.Linear(values, config.n_embd, bias=False)

    def forward(self, x: Tensor, in_document: Tensor | None, state: LayerState | None) -> Tensor:
        """(B, T, C) from x (B, T, C), which continues `state`, or starts with `in_document` (T,) at 0 for each document."""
        qkv = torch.cat((self.q(x), self.k(x), self.v(x)), dim=-1)
        inputs = qkv, self.rate(x), self.decay(x), self.conv.weight, self.A_log, self.dt_bias
        if state is None:
            y = recomputed(partial(self.heads, in_document), *inputs)
        else:
            with torch.autocast(x.device.type, enabled=False):
                y = self.continued(state, *inputs)
        return self.o(recomputed(self.gated, y, self.o_gate(x), self.norm.weight))

    def heads(self, in_document: Tensor | None, qkv: Tensor, *others: Tensor) -> Tensor:
        """Outputs of the heads, (B, nh, T, vs) float32, for projections that start with `in_document`."""
        with torch.autocast(qkv.device.type, enabled=False):
            parts = self.rule_inputs(preceded(qkv, None, self.conv.weight.size(-1) - 1), in_document, *others)
            return chunked_delta_rule(*parts, in_document, self.empty(qkv))[0]

    def continued(self, state: LayerState, qkv: Tensor, *others: Tensor) -> Tensor:
        """The same for projections that continue `state`, which becomes that after them."""
        B, T, _ = qkv.shape
        before, matrices = state.read(0, B), state.read(1, B)
        qkv = preceded(qkv, before, before.size(1))
        q, k, v, rates, decays = self.rule_inputs(qkv, None, *others)
        if state.ends is not None:
            padding = (torch.arange(T, device=qkv.device) >= state.ends[:, None])[:, None]  # (B, 1, T)
            rates, decays = rates.masked_fill(padding, 0), decays.masked_fill(padding, 0)
        if T == 1:
            y, matrices = delta_rule(q, k, v, rates, decays, matrices)
        else:
            y, matrices = chunked_delta_rule(q, k, v, rates, decays, None, matrices)
        state.write(0, state.last(qkv, before.size(1)))
        state.write(1, matrices)
        return y

    def empty(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), len(self.A_log), self.key_size, self.value_size, device=x.device, dtype=torch.float32)

    def rule_inputs(
        self,
        qkv: Tensor,
        in_document: Tensor | None,
        rate: Tensor,
        decay: Tensor,
        weight: Tensor,
        A_log: Tensor,
        dt_bias: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Queries and keys (B, nh, T, ks), values (B, nh, T, vs), learning rates, and logarithms of decays (B, nh, T)."""
        mixed = F.silu(convolve(qkv, weight, None, in_document)).float()
        sizes = self.key_size, self.key_size, self.value_size
        q, k, v = (x.unflatten(-1, (-1, n)).transpose(1, 2) for x, n in zip(mixed.split(self.parts, -1), sizes, strict=True))
        shared = v.size(1) // q.size(1)
        q, k = (_unit(x).repeat_interleave(shared, dim=1) for x in (q, k))
        decay = -A_log.float().exp() * F.softplus(decay.float() + dt_bias.float())
        return q * self.key_size**-0.5, k, v, rate.float().sigmoid().transpose(1, 2), decay.transpose(1, 2)

    def gated(self, y: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
        """norm(y) * silu(gate), (B, T, nh * vs), for y (B, nh, T, vs)."""
        y = self.norm.normalized(y, weight, None).transpose(1, 2).flatten(2)
        return (y * F.silu(gate.float())).to(gate.dtype)


def _unit(x: Tensor) -> Tensor:
    """x over its length in the last dimension."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, decays: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs (B, nh, 1, vs) and the state after one token; see `chunked_delta_rule`."""
    state = state * decays.exp()[..., None]
    change = (v - k @ state) * rates[..., None]
    state = state + k.transpose(-1, -2) @ change
    return q @ state, state


def chunked_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, rates: Tensor, decays: Tensor, in_document: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the outputs of the heads, (B, nh, T, vs), and the state after the last token.

    The changes of a chunk's tokens depend on each other: (I + A) changes = rates * (v - decayed k state), where A has
    rates_i * decay_ij * k_i k_j below the diagonal. It is solved for all at once (https://arxiv.org/abs/2406.06484, section 3).

    Args:
        q, k: (B, nh, T, ks), v: (B, nh, T, vs), rates: (B, nh, T); all float32.
        decays: (B, nh, T), logarithms of the factors of the state before each token.
        in_document: (T,), position of each token in its document, at whose beginning the state is zero. None: one document.
        state: (B, nh, ks, vs), before the first token; not read with several documents.
    """
    T, L = q.size(2), min(q.size(2), CHUNK)
    q, k, v = (F.pad(x, (0, 0, 0, -T % L)).unflatten(2, (-1, L)) for x in (q, k, v))  # (B, nh, N, L, ...)
    rates, decays = (F.pad(x, (0, -T % L)).unflatten(2, (-1, L)) for x in (rates, decays))  # (B, nh, N, L)
    reads, continues, lasts = _documents_in_chunks(in_document, T, L, q.device)
    since = decays[..., None, :].masked_fill(~reads, 0).sum(-1)  # of the state at the beginning of chunk or document
    between = (since[..., None] - since[..., None, :]).masked_fill(~reads, -torch.inf).exp()  # (B, nh, N, L, L)
    until = (since[..., -1:] - since).masked_fill(~lasts, -torch.inf).exp()[..., None]
    since = since.masked_fill(~continues, -torch.inf).exp()[..., None]
    weighted_k = k * rates[..., None]
    system = weighted_k @ k.transpose(-1, -2) * between
    right = torch.cat((v * rates[..., None], weighted_k * since), dim=-1)
    changes, reading = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True).split(
        [v.size(-1), k.size(-1)], dim=-1
    )
    within, q, k, kept = q @ k.transpose(-1, -2) * between, q * since, (k * until).transpose(-1, -2), since[..., -1:, :]
    outputs = []
    for i in range(q.size(2)):
        change = changes[:, :, i] - reading[:, :, i] @ state
        outputs.append(q[:, :, i] @ state + within[:, :, i] @ change)
        state = state * kept[:, :, i] + k[:, :, i] @ change
    return torch.stack(outputs, dim=2).flatten(2, 3)[:, :, :T], state


def _documents_in_chunks(in_document: Tensor | None, T: int, L: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return which tokens of a chunk each one reads, (N, L, L); which are of a document that began before the chunk, and which
    are of the last document of the chunk, (N, L). With one document, masks for all chunks."""
    causal, every = torch.ones(L, L, dtype=torch.bool, device=device).tril(), torch.ones(L, dtype=torch.bool, device=device)
    if in_document is None:
        return causal, every, every
    first = F.pad(torch.arange(T, device=device) - in_document, (0, -T % L)).view(-1, L)  # tokens before the document
    same = first[:, :, None] == first[:, None]
    return causal & same, first < torch.arange(0, first.numel(), L, device=device)[:, None], same[:, -1]
