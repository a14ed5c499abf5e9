"""The auxiliary loss that keeps routers from sending all tokens to the same experts.

N tokens, L layers with a mixture, E experts, K of them for each token.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lit_llm.errors import OptionError
from lit_llm.model.config import Config
from lit_llm.model.experts import Router
from lit_llm.model.gpt import GPT


def check_router_loss(coefficient: float, config: Config) -> None:
    """Raise OptionError if the routers of the model cannot be trained with this loss."""
    if coefficient and not config.n_expert:
        raise OptionError(
            f"`train.router_loss` {coefficient} balances experts, but models of type {config.model_type} have none. Omit it"
        )
    if coefficient and config.router_score == "sigmoid":
        raise OptionError(
            f"`train.router_loss` {coefficient} is defined for routers with softmax; {config.model_type} balances its experts "
            "with a bias for the choice. Omit it"
        )


def router_loss(logits: Sequence[Tensor], n_chosen: int) -> Tensor:
    """Return E * sum_e f_e P_e (https://arxiv.org/abs/2101.03961, section 2.2), a scalar: K if all experts are used alike.

    f_e is the share of the L N tokens that choose expert e, P_e the mean of its probability, over all layers together as in
    `load_balancing_loss_func` of transformers.

    Args:
        logits: (N, E) for each of the L layers.
    """
    probabilities = torch.cat(list(logits)).softmax(-1)  # (L N, E)
    chosen = probabilities.topk(n_chosen).indices
    share = torch.zeros_like(probabilities).scatter(-1, chosen, 1.0).mean(0)
    return probabilities.size(-1) * (share * probabilities.mean(0)).sum()


@contextmanager
def watched_routers(gpt: GPT) -> Iterator[list[Tensor]]:
    """Yield a list that each pass with a gradient fills with the logits of its routers."""
    logits: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if torch.is_grad_enabled():
            logits.append(output)

    hooks = [module.register_forward_hook(keep) for module in gpt.modules() if isinstance(module, Router)]
    try:
        yield logits
    finally:
        for hook in hooks:
            hook.remove()
