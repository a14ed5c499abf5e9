"""Continue prompts: one pass over the prompts fills a key/value cache, then a token at a time.

B prompts, T tokens of the longest, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_llm.model import GPT, KVCache
from lit_llm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Completion:
    """What was generated after a prompt."""

    ids: list[int]
    """Tokens, without the one that ended them."""
    text: str
    ended: bool
    """Whether the model ended it, not the limit of tokens."""


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 1337,
) -> list[Completion]:
    """Complete all prompts as one batch.

    Args:
        prompts: Texts, or token ids. An empty text starts from BOS.
        temperature: 0 takes the likeliest token.
        seed: Prompt i is sampled from a random stream of its own, seeded by seed + i.

    Raises:
        ValueError: if a prompt has no tokens, or a prompt and `max_new_tokens` do not fit into the context.
    """
    encoded = [encode_prompt(tokenizer, p) if isinstance(p, str) else list(p) for p in prompts]
    longest = max(map(len, encoded))
    if longest + max_new_tokens > model.config.block_size:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the context of {model.config.block_size}. "
            "Shorten the prompt or lower --max_new_tokens"
        )
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(encoded))]
    new = _continue(model, encoded, max_new_tokens, tokenizer.eos_ids, temperature, top_k, top_p, generators)
    completions = []
    for ids in new:
        ended = bool(ids) and ids[-1] in tokenizer.eos_ids
        kept = ids[:-1] if ended else ids
        completions.append(Completion(kept, tokenizer.decode(kept), ended))
    return completions


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    ids = tokenizer.encode(prompt)
    if not ids and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id]
    if not ids:
        raise ValueError("the prompt is empty and this tokenizer has no BOS to start from. Give a --prompt")
    return ids


@torch.inference_mode()
def _continue(
    model: GPT,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    eos_ids: frozenset[int],
    temperature: float,
    top_k: int | None,
    top_p: float,
    generators: Sequence[torch.Generator],
) -> list[list[int]]:
    """New tokens of each prompt, up to and with the first of `eos_ids`."""
    device, config = model.wte.weight.device, model.config
    ends = torch.tensor([len(p) for p in prompts], device=device)  # (B,), where the next token goes
    padded = torch.zeros(len(prompts), int(ends.max()), dtype=torch.long)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    cache = KVCache(config, len(prompts), padded.size(1) + max_new_tokens, device, model.wte.weight.dtype)
    cache.length = padded.size(1)
    hidden = model.hidden(padded.to(device), cache=cache)  # (B, T, C); what follows a prompt's end is overwritten below
    hidden = hidden[torch.arange(len(prompts), device=device), ends - 1]  # (B, C)
    new: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for _ in range(max_new_tokens):
        tokens = sample(model.head(hidden), temperature, top_k, top_p, generators)  # (B,)
        for i, token in enumerate(tokens.tolist()):
            if i in running:
                new[i].append(token)
                if token in eos_ids:
                    running.discard(i)
        if not running or len(new[min(running)]) == max_new_tokens:
            break
        cache.length = int(ends.max()) + 1
        hidden = model.hidden(tokens[:, None], cache=cache, positions=ends[:, None])[:, 0]
        ends = ends + 1
    return new


def sample(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """One token per row (B,) from logits (B, V), in float32; row i draws from `generators[i]`, on the CPU."""
    logits = logits.float()
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits, order = (logits / temperature).sort(dim=-1, descending=True)
    if top_k is not None:
        logits, order = logits[:, :top_k], order[:, :top_k]
    probabilities = logits.softmax(dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    probabilities = probabilities.masked_fill(cumulative - probabilities >= top_p, 0)  # keeps the token that reaches top_p
    cumulative = probabilities.cumsum(dim=-1)
    draws = torch.cat([torch.rand(1, generator=g) for g in generators]).to(logits.device)
    chosen = torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True)  # (B, 1)
    return order.gather(1, chosen.clamp(max=order.size(1) - 1))[:, 0]
