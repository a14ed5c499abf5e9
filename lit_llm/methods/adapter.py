"""LLaMA-Adapter (https://arxiv.org/abs/2303.16199): learned prompts that the attention of the upper layers also sees.

nh query heads, ng key/value heads, hs head size, P tokens of the prompt, C = n_embd.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lit_llm.errors import OptionError
from lit_llm.methods.method import Method
from lit_llm.model.gpt import GPT, CausalSelfAttention


class Adapter(Method):
    """Give each layer from `start_layer` on that has attention a prompt of `prompt_length` embeddings and a gate per head."""

    name = "adapter"

    def __init__(self, prompt_length: int = 10, start_layer: int = 2) -> None:
        self.prompt_length, self.start_layer = prompt_length, start_layer

    def attach(self, model: GPT) -> None:
        """Raises ValueError if no layer is left to adapt."""
        attentions = attentions_of(model.h[self.start_layer :])
        if not attentions:
            kind = " with attention" if model.config.keeps_state else ""
            raise OptionError(f"`adapter.start_layer` {self.start_layer} leaves no layer{kind}: the model has {len(model.h)}")
        for attn in attentions:
            prompt = Prompt(self.prompt_length, model.config.n_embd, model.config.n_head)
            attn.adapter = prompt.to(next(attn.parameters()).device)

    def trainable(self, name: str) -> bool:
        return ".attn.adapter." in name

    def arguments(self) -> dict[str, Any]:
        return {"prompt_length": self.prompt_length, "start_layer": self.start_layer}

    def prepare_generation(self, model: GPT) -> None:
        for attn in attentions_of(model.h):
            if isinstance(attn.adapter, Prompt):
                attn.adapter.precompute(attn, model.wte.weight.dtype)


class Prompt(nn.Module):
    """The addition of a layer's prompt to its attention output: gate * attention(q, prompt_k, prompt_v).

    The prompt goes through the layer's own key and value projections, without positions. The gates start at zero, so that the
    model starts unchanged. Both are float32 whatever the base is held in.
    """

    shown_as = "prompts"

    def __init__(self, prompt_length: int, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(prompt_length, n_embd))
        self.gate = nn.Parameter(torch.zeros(n_head))
        self._kv: tuple[Tensor, Tensor] | None = None

    def forward(self, attn: CausalSelfAttention, q: Tensor) -> Tensor:
        """(B, nh, T, hs) for rotated queries q (B, nh, T, hs)."""
        k, v = self._kv or attn.keys_and_values(self.embedding.to(q.dtype)[None])  # (1, ng, P, hs)
        k, v = (x.expand(q.size(0), -1, -1, -1) for x in (k, v))
        return self.gate.to(q.dtype)[:, None, None] * attn.attend_to_all(q, k, v)

    @torch.no_grad()
    def precompute(self, attn: CausalSelfAttention, dtype: torch.dtype) -> None:
        """Keep the prompt's keys and values for generation. After this the prompt must not train any more."""
        self._kv = attn.keys_and_values(self.embedding.to(dtype)[None])


def attentions_of(blocks: nn.ModuleList) -> list[CausalSelfAttention]:
    """One for each layer that has attention."""
    return [module for module in blocks.modules() if isinstance(module, CausalSelfAttention)]
