"""Continue prompts: one pass over the prompts fills a key/value cache, then a token at a time.

B prompts, T tokens of the longest, C = n_embd, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lit_llm.cache import KVCache
from lit_llm.model import GPT
from lit_llm.sampling import Sampling, sample
from lit_llm.text_stream import TextStream
from lit_llm.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenScore:
    """What the model made of a token: in nats, before penalty, temperature, top_k, top_p and min_p."""

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


class Row:
    """One prompt and its continuation in the making.

    Attributes:
        ids: Prompt and new tokens, without the EOS that ended them. The model has seen all but the last.
        done: Whether EOS, a stop sequence or the limit of tokens has ended it.

    Args:
        continues: The text goes on from the prompt's text, and keeps a leading space.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling,
        stop: Sequence[str] = (),
        continues: bool = False,
    ) -> None:
        self.ids, self.n_prompt, self.sampling = list(prompt), len(prompt), sampling
        self.generator = sampling.generator()
        self.scores: list[TokenScore] = []
        self.done = max_new_tokens == 0
        self._max_new_tokens, self._eos_ids = max_new_tokens, tokenizer.eos_ids
        self._stream = TextStream(tokenizer, stop, prompt if continues else ())
        self._ended = False

    def take(self, token: int, score: TokenScore | None = None) -> str:
        """Add a token, and return the text that became certain."""
        if token in self._eos_ids:
            self.done = self._ended = True
            return self._stream.close()
        self.ids.append(token)
        if score is not None:
            self.scores.append(score)
        text = self._stream.feed(token)
        self._ended = self._stream.stopped
        self.done = self._ended or len(self.ids) - self.n_prompt == self._max_new_tokens
        return text + self._stream.close() if self.done else text

    def completion(self) -> Completion:
        """What it came to, once it is done."""
        return Completion(self.ids[self.n_prompt :], self._stream.text, self._ended, self.scores)


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 1337,
    stop: Sequence[str] = (),
    n_top: int | None = None,
) -> list[Completion]:
    """Complete all prompts as one batch.

    Args:
        prompts: Texts, or token ids. An empty text starts from BOS.
        temperature: 0 takes the likeliest token. See `Sampling` for this and the following.
        seed: Prompt i is sampled from a random stream of its own, seeded by seed + i.
        stop: Texts at which a completion ends, and which are not part of it.
        n_top: Score the tokens, each beside this many of the likeliest.

    Raises:
        ValueError: if a prompt has no tokens, or a prompt and `max_new_tokens` do not fit into the context.
    """
    encoded = [encode_prompt(tokenizer, p) if isinstance(p, str) else list(p) for p in prompts]
    check_context(model, max(map(len, encoded)), max_new_tokens)
    how = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    rows = [Row(tokenizer, ids, max_new_tokens, replace(how, seed=seed + i), stop) for i, ids in enumerate(encoded)]
    for _ in continue_rows(model, rows, max_new_tokens, n_top):
        pass
    return [row.completion() for row in rows]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    ids = tokenizer.encode(prompt)
    if not ids and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id]
    if not ids:
        raise ValueError("the prompt is empty and this tokenizer has no BOS to start from. Give a --prompt")
    return ids


def check_context(model: GPT, n_prompt: int, max_new_tokens: int) -> None:
    """Raises ValueError if a prompt and what is to follow do not fit into the context."""
    if n_prompt + max_new_tokens > model.config.block_size:
        raise ValueError(
            f"a prompt of {n_prompt} tokens and {max_new_tokens} new ones exceed the context of {model.config.block_size}. "
            "Shorten the prompt or lower --max_new_tokens"
        )


@torch.inference_mode()
def continue_rows(model: GPT, rows: Sequence[Row], max_new_tokens: int, n_top: int | None = None) -> Iterator[tuple[Row, str]]:
    """Bring all rows to their ends as one batch, and yield each piece of text as it becomes certain."""
    running = [row for row in rows if not row.done]
    if not running:
        return
    prompts = [row.ids for row in running]
    cache, hidden = prefill(model, prompts, max(map(len, prompts)) + max_new_tokens)
    while True:
        for row, token, score in zip(running, *choose(model, hidden, running, n_top), strict=True):
            yield row, row.take(token, score)
        for i in reversed(range(len(running))):  # rows that are done leave, and the last one takes their place
            if running[i].done:
                last = running.pop()
                if i < len(running):
                    running[i] = last
                    cache.put(i, cache, len(running))
        if not running:
            return
        hidden = advance(model, cache, running)


@torch.inference_mode()
def prefill(model: GPT, prompts: Sequence[Sequence[int]], max_length: int) -> tuple[KVCache, Tensor]:
    """A cache with the prompts in its rows, for up to `max_length` tokens each, and the hidden states (B, C) at their ends."""
    weight = model.wte.weight
    ends = torch.tensor([len(p) for p in prompts], device=weight.device)
    padded = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    cache = KVCache(model.config, len(prompts), max_length, weight.device, weight.dtype, chunk=1)
    hidden = model.hidden(padded.to(weight.device), cache=cache, ends=ends)  # (B, T, C)
    return cache, hidden[torch.arange(len(prompts), device=weight.device), ends - 1]


@torch.inference_mode()
def advance(model: GPT, cache: KVCache, rows: Sequence[Row]) -> Tensor:
    """Hidden states (B, C) after the last token of each row, which the first B rows of the cache lack.

    LongRoPE turns a long sequence by another table than a short one: a row that becomes long is computed anew, as the Phi
    models in transformers do it. `dynamic` scaling turns by the length at each step and leaves older keys as they are, as
    there.
    """
    hidden = next_hidden(model, cache, [row.ids[-1] for row in rows], [len(row.ids) - 1 for row in rows])
    if model.rope is not None and model.rope.switch is not None:
        for i, row in enumerate(rows):
            if len(row.ids) == model.rope.switch + 1:
                fresh, hidden[i] = prefill(model, [row.ids], len(row.ids))
                cache.put(i, fresh)
    return hidden


@torch.inference_mode()
def next_hidden(model: GPT, cache: KVCache, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
    """Hidden states (B, C) after one more token in each of the first B rows of the cache."""
    device = model.wte.weight.device
    cache.length, cache.level = max(positions) + 1, min(positions) == max(positions)
    ids, at = (torch.tensor(values, device=device)[:, None] for values in (tokens, positions))  # (B, 1)
    return model.hidden(ids, cache=cache, positions=at)[:, 0]


@torch.inference_mode()
def choose(
    model: GPT, hidden: Tensor, rows: Sequence[Row], n_top: int | None = None
) -> tuple[list[int], Sequence[TokenScore | None]]:
    """The next token of each row, drawn as the row says, and if `n_top` is given its score, from hidden states (B, C)."""
    logits = model.head(hidden)  # (B, V)
    tokens = sample(logits, [r.sampling for r in rows], [r.generator for r in rows], [r.ids for r in rows])  # (B,)
    return tokens.tolist(), [None] * len(rows) if n_top is None else token_scores(logits, tokens, n_top)


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
