"""Continue prompts: one pass over the prompts fills a key/value cache, then a token at a time.

B prompts, T tokens of the longest, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_llm.model import GPT, KVCache
from lit_llm.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenScore:
    """What the model made of a token: in nats, before temperature, top_k and top_p."""

    log_prob: float
    top: dict[int, float]
    """The likeliest tokens at this place and their log-probabilities."""


@dataclass(frozen=True)
class Completion:
    """What was generated after a prompt."""

    ids: list[int]
    """Tokens, without an EOS that ended them. The last ones may make up the stop sequence that `text` lacks."""
    text: str
    """Up to the earliest stop sequence."""
    ended: bool
    """Whether EOS or a stop sequence ended it, not the limit of tokens."""
    scores: list[TokenScore] = field(default_factory=list)
    """One for each of `ids`, if `n_top` was given."""


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
    stop: Sequence[str] = (),
    n_top: int | None = None,
) -> list[Completion]:
    """Complete all prompts as one batch.

    Args:
        prompts: Texts, or token ids. An empty text starts from BOS.
        temperature: 0 takes the likeliest token.
        seed: Prompt i is sampled from a random stream of its own, seeded by seed + i.
        stop: Texts at which a completion ends, and which are not part of it.
        n_top: Score the tokens, each beside this many of the likeliest.

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
    ending = Ending(tokenizer, stop)
    rows = _continue(model, encoded, max_new_tokens, ending, temperature, top_k, top_p, generators, n_top)
    completions = []
    for ids, scores in rows:
        by_eos = bool(ids) and ids[-1] in tokenizer.eos_ids
        kept = ids[:-1] if by_eos else ids
        text = tokenizer.decode(kept)
        cut = earliest(text, stop)
        completions.append(Completion(kept, text[:cut], by_eos or cut is not None, scores[: len(kept)]))
    return completions


def earliest(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of the stop sequences begins in `text`, or None."""
    return min((where for s in stop if (where := text.find(s)) >= 0), default=None)


class Ending:
    """Whether a row of new tokens is complete: its last token is an EOS, or a stop sequence stands at its end."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        # A character has up to 4 bytes, each of which may be a token. Some more, because decoding may strip the first.
        self.tail = 4 * max(map(len, stop), default=0) + 8

    def __call__(self, ids: list[int]) -> bool:
        if ids[-1] in self.tokenizer.eos_ids:
            return True
        return bool(self.stop) and earliest(self.tokenizer.decode(ids[-self.tail :]), self.stop) is not None


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
    ending: Ending,
    temperature: float,
    top_k: int | None,
    top_p: float,
    generators: Sequence[torch.Generator],
    n_top: int | None,
) -> list[tuple[list[int], list[TokenScore]]]:
    """New tokens of each prompt, up to and with what ended them, and their scores."""
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
    scores: list[list[TokenScore]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for _ in range(max_new_tokens):
        logits = model.head(hidden)  # (B, V)
        tokens = sample(logits, temperature, top_k, top_p, generators)  # (B,)
        scored = None if n_top is None else token_scores(logits, tokens, n_top)
        for i, token in enumerate(tokens.tolist()):
            if i in running:
                new[i].append(token)
                if scored is not None:
                    scores[i].append(scored[i])
                if ending(new[i]):
                    running.discard(i)
        if not running or len(new[min(running)]) == max_new_tokens:
            break
        cache.length = int(ends.max()) + 1
        hidden = model.hidden(tokens[:, None], cache=cache, positions=ends[:, None])[:, 0]
        ends = ends + 1
    return list(zip(new, scores, strict=True))


def token_scores(logits: Tensor, tokens: Tensor, n_top: int) -> list[TokenScore]:
    """Scores of tokens (B,) under logits (B, V), in float32."""
    log_probs = logits.float().log_softmax(dim=-1)
    of_tokens = log_probs.gather(1, tokens[:, None])[:, 0].tolist()
    values, ids = (x.tolist() for x in log_probs.topk(min(n_top, logits.size(-1)), dim=-1))
    return [TokenScore(p, dict(zip(i, v, strict=True))) for p, i, v in zip(of_tokens, ids, values, strict=True)]


@torch.inference_mode()
def prompt_scores(model: GPT, ids: Sequence[int], n_top: int) -> list[TokenScore]:
    """Scores of all tokens of a prompt but the first, each given those before it."""
    row = torch.tensor([list(ids)], device=model.wte.weight.device)
    if row.size(1) < 2:
        return []
    hidden, targets = model.hidden(row[:, :-1])[0], row[0, 1:]
    parts = zip(hidden.split(256), targets.split(256), strict=True)  # to hold few logits at once
    return [score for h, t in parts for score in token_scores(model.head(h), t, n_top)]


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
