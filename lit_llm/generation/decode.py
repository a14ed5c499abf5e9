"""Rows of text under way: a prefill puts a prompt into a row of a key/value cache, then each decode step adds a token.

B prompts or rows, T tokens of the longest, C = n_embd, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lit_llm.errors import OptionError
from lit_llm.generation.sampling import NOT_FINITE, Sampling, are_finite, sample
from lit_llm.model.gpt import GPT
from lit_llm.model.kv_cache import KVCache
from lit_llm.text.ending import Ending
from lit_llm.text.stream import TextStream
from lit_llm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenScore:
    """Log-probabilities in nats at the place of a token, before penalty, temperature, top_k, top_p and min_p."""

    log_prob: float
    top: dict[int, float]
    """The most likely tokens and their log-probabilities, in descending order."""


@dataclass(frozen=True)
class Completion:
    """The generated continuation of a prompt."""

    ids: list[int]
    """Tokens, without an EOS that ended them. The last ones may make up the stop string that `text` lacks."""
    text: str
    """The text up to the earliest stop string."""
    ended: bool
    """True if EOS or a stop string ended it, False if the limit of tokens did."""
    scores: list[TokenScore] = field(default_factory=list)
    """One for each of `ids`, if `n_top` was given."""


class Row:
    """One prompt and its continuation so far.

    Attributes:
        ids: Prompt and new tokens, without the EOS that ended them. The model has seen all except the last.
        n_new: Tokens generated so far, with an EOS.
        done: True once EOS, a stop string or the limit of tokens has ended it.
        ended: True if it was one of the first two.

    Args:
        continues: The text continues the prompt's text, and keeps a leading space.
        n_top: Score the new tokens, each with this many of the most likely tokens at its place; None: no scores.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling,
        ending: Ending,
        continues: bool = False,
        n_top: int | None = None,
    ) -> None:
        self.ids, self.n_prompt, self.sampling, self.n_top = list(prompt), len(prompt), sampling, n_top
        self.generator = sampling.generator()
        self.scores: list[TokenScore] = []
        self.n_new, self.done, self.ended = 0, max_new_tokens == 0, False
        self.max_new_tokens = max_new_tokens
        self._end_ids = ending.ids
        self.stream = TextStream(tokenizer, ending.strings, self.ids if continues else ())

    def take(self, token: int, score: TokenScore | None = None) -> str:
        """Add a token, and return the text that became certain."""
        self.n_new += 1
        if token in self._end_ids:
            self.done = self.ended = True
            return self.stream.close()
        self.ids.append(token)
        if score is not None:
            self.scores.append(score)
        text = self.stream.feed(token)
        self.ended = self.stream.stopped
        self.done = self.ended or self.n_new == self.max_new_tokens
        return text + self.stream.close() if self.done else text

    def completion(self) -> Completion:
        return Completion(self.ids[self.n_prompt :], self.stream.text, self.ended, self.scores)


R = TypeVar("R", bound=Row)


class Batch(Generic[R]):
    """Rows that a model continues together: `rows[i]` is row i of one key/value cache, at a position of its own.

    Args:
        size: Maximum number of rows.
        max_length: Maximum number of tokens of a row.
        int8: Hold keys and values in 8 bits.
        compile: Compile the decode step. Its shapes are then constant: it computes `size` rows and attends to `max_length`
            positions.

    Raises:
        OptionError: if the model to compile is a mixture of experts.
    """

    def __init__(self, model: GPT, size: int, max_length: int, int8: bool = False, compile: bool = False) -> None:
        self.model, self.size, self.rows = model, size, list[R]()
        self.cache = make_cache(model, size, max_length, int8)
        self._compiled: Callable[..., Tensor] | None = compiled_step(model, self.cache) if compile else None

    @torch.inference_mode()
    def prefill(self, rows: Sequence[R]) -> Tensor:
        """Add rows, and return the hidden states (B, C) at the ends of their prompts."""
        prompts, start = [row.ids for row in rows], len(self.rows)
        assert start + len(rows) <= self.size
        if start == 0:
            hidden = prefill(self.model, self.cache, prompts)
        else:
            fresh = make_cache(self.model, len(rows), max(map(len, prompts)))
            hidden = prefill(self.model, fresh, prompts)
            for i in range(len(rows)):
                self.cache.put(start + i, fresh, i)
        self.rows += rows
        return hidden

    @torch.inference_mode()
    def decode_step(self) -> Tensor:
        """Return the hidden states (B, C) after the last token of each row, which the cache lacks.

        LongRoPE rotates long sequences by another table than short ones: the cache of a row that becomes long is computed
        again, as in the Phi models of transformers. `dynamic` scaling rotates by the current length and keeps older keys, as
        there.
        """
        tokens, positions = [row.ids[-1] for row in self.rows], [len(row.ids) - 1 for row in self.rows]
        hidden = decode_step(self.model, self.cache, tokens, positions, self._compiled)
        if self.model.rope is not None and self.model.rope.switch is not None:
            for i, row in enumerate(self.rows):
                if len(row.ids) == self.model.rope.switch + 1:
                    fresh = make_cache(self.model, 1, len(row.ids))
                    hidden[i] = prefill(self.model, fresh, [row.ids])[0]
                    self.cache.put(i, fresh)
        return hidden

    def leave(self, i: int) -> None:
        """Free row i; the last row takes its place."""
        last = self.rows.pop()
        if i < len(self.rows):
            self.rows[i] = last
            self.cache.put(i, self.cache, len(self.rows))

    def drop_done(self) -> None:
        """Free the rows that are done."""
        for i in reversed(range(len(self.rows))):
            if self.rows[i].done:
                self.leave(i)


def continue_rows(batch: Batch[R], rows: Iterable[R]) -> Iterator[tuple[R, str]]:
    """Generate all rows to their ends, and yield each piece of text as it becomes certain. Rows wait for a free place.

    Raises:
        OptionError: if the model's logits are not finite.
    """
    waiting = (row for row in rows if not row.done)
    while True:
        joining = list(islice(waiting, batch.size - len(batch.rows)))
        if not joining and not batch.rows:
            return
        hidden = batch.prefill(joining) if joining else batch.decode_step()
        active = joining or list(batch.rows)
        for row, (token, score) in zip(active, sample_next(batch.model, hidden, active), strict=True):
            if token < 0:
                raise OptionError(NOT_FINITE)
            yield row, row.take(token, score)
        batch.drop_done()


def make_cache(model: GPT, size: int, max_length: int, int8: bool = False) -> KVCache:
    """Return an empty cache for rows that grow by one token at a time after the prefill."""
    return model.make_cache(size, max_length, chunk=1, int8=int8)


@torch.inference_mode()
def prefill(model: GPT, cache: KVCache, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Fill the first rows of a cache with prompts, and return the hidden states (B, C) at their ends."""
    device = model.device
    ends = torch.tensor([len(p) for p in prompts], device=device)
    padded = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    hidden = model.hidden(padded.to(device), cache=cache, ends=ends)  # (B, T, C)
    return hidden[torch.arange(len(prompts), device=device), ends - 1]


@torch.inference_mode()
def decode_step(
    model: GPT, cache: KVCache, tokens: Sequence[int], positions: Sequence[int], compiled: Callable[..., Tensor] | None = None
) -> Tensor:
    """Add one token to each of the first B rows of the cache, and return the hidden states (B, C) after them."""
    if compiled is None:
        cache.length, cache.level, idle = max(positions) + 1, min(positions) == max(positions), []
    else:
        cache.length, cache.level, idle = cache.max_length, False, [0] * (cache.n_rows - len(tokens))
    device = model.device
    ids, at = (torch.tensor([*values, *idle], device=device)[:, None] for values in (tokens, positions))  # (B, 1)
    return (compiled or model.hidden)(ids, cache=cache, positions=at)[: len(tokens), 0]


def compiled_step(model: GPT, cache: KVCache) -> Callable[..., Tensor]:
    """Return `model.hidden` for one token in each row of the cache, compiled on its first call.

    On CUDA it is a graph of kernels that the CPU launches at once. Raises OptionError as `Batch`.
    """
    if model.config.n_expert:
        raise OptionError("`compile` does not support a mixture of experts: the token decides which of them run. Omit it")
    cache.stay()
    mode = "reduce-overhead" if model.device.type == "cuda" else "default"
    return torch.compile(model.hidden, fullgraph=True, dynamic=False, mode=mode)


@torch.inference_mode()
def sample_next(model: GPT, hidden: Tensor, rows: Sequence[Row]) -> list[tuple[int, TokenScore | None]]:
    """Sample the next token of each row from hidden states (B, C), and score it if the row has `n_top`.

    The token is -1 where the logits of the row are not finite.
    """
    logits = model.head(hidden)  # (B, V)
    tokens = sample(logits, [r.sampling for r in rows], [r.generator for r in rows], [r.ids for r in rows])  # (B,)
    scores: list[TokenScore | None] = [None] * len(rows)
    drawn = tokens.tolist()
    if scored := [i for i, row in enumerate(rows) if row.n_top is not None and drawn[i] >= 0]:
        n_top = [rows[i].n_top or 0 for i in scored]
        for i, n, score in zip(scored, n_top, token_scores(logits[scored], tokens[scored], max(n_top)), strict=True):
            scores[i] = TokenScore(score.log_prob, dict(list(score.top.items())[:n]))
    return list(zip(drawn, scores, strict=True))


def token_scores(logits: Tensor, tokens: Tensor, n_top: int) -> list[TokenScore]:
    """Score tokens (B,) under logits (B, V), in float32."""
    log_probs = logits.float().log_softmax(dim=-1)
    of_tokens = log_probs.gather(1, tokens[:, None])[:, 0].tolist()
    values, ids = (x.tolist() for x in log_probs.topk(min(n_top, logits.size(-1)), dim=-1))
    return [TokenScore(p, dict(zip(i, v, strict=True))) for p, i, v in zip(of_tokens, ids, values, strict=True)]


@torch.inference_mode()
def prompt_scores(model: GPT, ids: Sequence[int], n_top: int) -> list[TokenScore]:
    """Score all tokens of a prompt except the first, each given those before it. Raises OptionError as `continue_rows`."""
    row = torch.tensor([list(ids)], device=model.device)
    if row.size(1) < 2:
        return []
    hidden, targets = model.hidden(row[:, :-1])[0], row[0, 1:]
    scores = []
    for h, t in zip(hidden.split(256), targets.split(256), strict=True):  # parts, to hold few logits at once
        logits = model.head(h)
        if not are_finite(logits).all():
            raise OptionError(NOT_FINITE)
        scores += token_scores(logits, t, n_top)
    return scores
