"""Mixtures of experts (https://arxiv.org/abs/2101.03961): a router chooses, for each token, a few of many gated MLPs.

N tokens, C = n_embd, E = n_expert, K = n_expert_per_token.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.model.config import Config
from lit_llm.model.grouped import grouped_linear, put_together, runs_grouped
from lit_llm.model.recompute import recomputed

# Below this a sum of scores is no divisor: sigmoids may all be close to 0.
SMALLEST_SUM = 1e-12


class MoE(nn.Module):
    """y = sum of w_e expert_e(x) over the experts that the router chooses, plus shared experts, which see every token.

    Tokens are sorted by expert, so that each expert runs once, on its own tokens.

    Args:
        make_mlp: Returns an MLP with that many hidden features, and with biases or without.
    """

    def __init__(self, config: Config, make_mlp: Callable[[int, bool], nn.Module]) -> None:
        super().__init__()
        self.router, self.weighs_inputs = Router(config), config.weigh_expert_inputs
        self.experts = nn.ModuleList(make_mlp(config.expert_size, config.expert_bias) for _ in range(config.n_expert))
        self.shared = make_mlp(config.shared_expert_size, config.mlp_bias) if config.shared_expert_size else None
        self.shared_router = nn.Linear(config.n_embd, 1, bias=False) if config.shared_expert_gate else None

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)  # (N, C)
        weights, chosen = self.router.choose(self.router(flat))
        y = self._routed(flat, weights.to(x.dtype), chosen)
        if self.shared is not None:
            shared = self.shared(flat)
            y = y + (shared if self.shared_router is None else self.shared_router(flat).sigmoid() * shared)
        return y.view_as(x)

    def _routed(self, flat: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Sum of the outputs of the chosen experts (N, K), times their weights."""
        of_pairs, order = chosen.flatten().sort(stable=True)  # token-expert pairs, those of one expert together
        tokens, weights = order // chosen.size(1), weights.flatten()[order, None]
        rows = flat[tokens] * weights if self.weighs_inputs else flat[tokens]
        experts = torch.arange(len(self.experts), device=flat.device)
        ends = torch.searchsorted(of_pairs, experts, right=True, out_int32=True)  # bincount would wait for a GPU
        if runs_grouped(flat, [linear for expert in self.experts for linear in expert.children()]):
            outputs = self._grouped(rows, ends, of_pairs)
        else:
            outputs = self._one_by_one(rows, ends)
        return torch.zeros_like(flat).index_add(0, tokens, outputs if self.weighs_inputs else outputs * weights)

    def _grouped(self, rows: Tensor, ends: Tensor, of_pairs: Tensor) -> Tensor:
        """Outputs of all experts, each for its rows up to its end, with three products in all."""
        gate, up, down = ([getattr(expert, part) for expert in self.experts] for part in ("gate", "up", "down"))
        gated: Callable[..., Tensor] = self.experts[0].gated  # type: ignore[assignment]
        hidden = recomputed(gated, *(grouped_linear(rows, linears, ends, of_pairs) for linears in (gate, up)))
        return grouped_linear(hidden, down, ends, of_pairs)

    def _one_by_one(self, rows: Tensor, ends: Tensor) -> Tensor:
        """The same for linears of any kind. It waits for a GPU."""
        counts = ends.diff(prepend=ends.new_zeros(1)).tolist()
        outputs = [
            expert(part)
            for expert, part in zip(self.experts, rows.split(counts), strict=True)
            # In training an expert without tokens runs too: every rank needs a gradient, even if it is zero.
            if self.training or len(part)
        ]
        return torch.cat(outputs)

    def put_together(self) -> None:
        """Move the weights of the experts next to each other in memory, for grouped products without a copy."""
        for part in ("gate", "up", "down"):
            put_together([getattr(expert, part) for expert in self.experts])


class Router(nn.Linear):
    """Chooses K of E experts for each token. A subclass of the linear that it is, because it holds the rules of the choice.

    It computes in float32, whatever the model is held in: rounded scores would be equal where the choice depends on them.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config.n_embd, config.n_expert, bias=config.router_bias)
        self.score, self.jitter = config.router_score, config.router_jitter
        self.n_chosen = config.n_expert_per_token
        self.normalize, self.scale = config.normalize_expert_weights, config.routed_scale
        self.n_group, self.n_chosen_group = config.n_expert_group, config.n_chosen_group
        self.n_in_group_score = config.n_in_group_score
        # It has no gradient: pretraining balances the experts with it.
        self.choice_bias: Tensor | None
        self.register_buffer("choice_bias", torch.zeros(config.n_expert) if config.choice_bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """Scores before softmax or sigmoid, (N, E) float32, for x (N, C)."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and indices of the chosen experts, (N, K) each."""
        if self.score == "sparsemixer":
            return sparsemixer(logits, self.n_chosen, self.jitter)
        scores = logits.sigmoid() if self.score == "sigmoid" else logits.softmax(-1)
        ranks = scores if self.choice_bias is None else scores + self.choice_bias
        if self.n_group > 1:
            ranks = self._in_best_groups(ranks)
        chosen = ranks.topk(self.n_chosen).indices
        weights = scores.gather(-1, chosen)
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=SMALLEST_SUM)
        return weights * self.scale, chosen

    def _in_best_groups(self, scores: Tensor) -> Tensor:
        """Return the scores (N, E), -inf outside of the best groups (https://arxiv.org/abs/2412.19437, section 2.1.2): those
        in which the sum of the largest scores is largest."""
        groups = scores.unflatten(-1, (self.n_group, -1))  # (N, groups, E / groups)
        best = groups.topk(self.n_in_group_score).values.sum(-1).topk(self.n_chosen_group).indices
        is_best = torch.zeros_like(groups[..., 0], dtype=torch.bool).scatter(-1, best, True)
        return groups.masked_fill(~is_best[..., None], -torch.inf).flatten(-2)


def sparsemixer(logits: Tensor, n_chosen: int, jitter: float) -> tuple[Tensor, Tensor]:
    """Return weights and indices (N, n_chosen) of the experts with the largest scores, as SparseMixer does in inference
    (https://arxiv.org/abs/2409.12136).

    An expert's weight is a softmax over the scores that are not far below its own and that were not chosen before: those with
    (s - s_e) / max(|s_e|, s) of at most 2 * jitter, where s is its score.
    """
    rest, weights, chosen = logits, [], []
    for _ in range(n_chosen):
        largest, index = rest.max(-1, keepdim=True)
        far = (largest - logits) / logits.abs().clamp(min=largest) > 2 * jitter
        weights.append(rest.masked_fill(far, -torch.inf).softmax(-1).gather(-1, index))
        chosen.append(index)
        rest = rest.scatter(-1, index, -torch.inf)
    return torch.cat(weights, -1), torch.cat(chosen, -1)
