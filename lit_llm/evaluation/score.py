"""Log-likelihoods of the last tokens of texts. A prefix that texts share is computed once.

B rows, T tokens, P tokens of a shared prefix, M scored tokens, C = n_embd, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from lit_llm.model.gpt import CHUNK_LOGITS, GPT
from lit_llm.text.thoughts import n_common

MIN_SAVING = 256  # tokens that sharing a prefix must save: it costs two more passes, of fewer tokens each
MAX_GROUP = 256  # most rows that share one prefix


@dataclass(frozen=True)
class Span:
    """Tokens. The last `n_scored` are scored, each given all before it."""

    ids: list[int]
    n_scored: int


@dataclass(frozen=True)
class Score:
    """Result for one span."""

    log_probs: list[float]
    """One for each scored token, in nats."""
    greedy: bool
    """Every scored token is the most likely one."""


@dataclass
class _Row:
    """A sequence to compute for the spans `members`, whose inputs are prefixes of it."""

    ids: list[int]
    first: int  # position of the earliest hidden state that is needed
    members: list[int] = field(default_factory=list)


def score(model: GPT, spans: Sequence[Span], batch_size: int, progress: str | None = None) -> list[Score]:
    """Return the score of each span.

    Spans whose input is equal to, or a prefix of, another's cost no row of their own. Rows with a long common prefix continue
    it from a key/value cache; the others are packed end to end, without padding.

    Args:
        batch_size: Rows in one pass of the model.
        progress: Label of a progress bar.

    Raises:
        ValueError: if a span has nothing to score, nothing before it, or does not fit into the context.
    """
    for span in spans:
        if not 0 < span.n_scored < len(span.ids):
            raise ValueError(f"{span.n_scored} of {len(span.ids)} tokens cannot be scored: at least one must precede them")
        if len(span.ids) - 1 > model.config.block_size:
            raise ValueError(f"{len(span.ids)} tokens exceed the context of {model.config.block_size} and one to predict")
    # These scalings rotate keys by the length of the whole text, so that the keys of a prefix do not fit a longer text.
    shares = model.rope is None or model.rope.scaling["rope_type"] not in ("dynamic", "longrope")
    rows = _rows(spans, shares)
    groups = _groups(rows) if shares else [[row] for row in rows]
    scores: dict[int, Score] = {}
    with tqdm(total=len(spans), desc=progress, disable=progress is None) as bar, torch.inference_mode():
        for batch, hidden in _forward(model, groups, batch_size):
            for i, result in _span_scores(model, spans, batch, hidden):
                scores[i] = result
                bar.update()
    return [scores[i] for i in range(len(spans))]


def _rows(spans: Sequence[Span], shares: bool) -> list[_Row]:
    """Return rows in lexicographic order: a prefix comes right before the texts that continue it."""
    rows: list[_Row] = []
    for i in sorted(range(len(spans)), key=lambda i: spans[i].ids[:-1]):
        ids = spans[i].ids[:-1]
        first = len(ids) - spans[i].n_scored
        last = rows[-1] if rows else None
        if last is not None and (ids == last.ids or (shares and ids[: len(last.ids)] == last.ids)):
            last.ids, last.first = ids, min(last.first, first)
        else:
            rows.append(_Row(ids, first))
        rows[-1].members.append(i)
    return rows


def _groups(rows: Sequence[_Row]) -> list[list[_Row]]:
    """Return the partition of the rows into groups of neighbours that costs the fewest computed tokens.

    A group computes its common prefix once. Dynamic programming over n, the rows before the end of the last group:

        cost(0) = 0
        cost(n) = min over m < n of cost(m) + tokens(m, n)

    where rows[m:n] is the last group and tokens(m, n) is given by `_group_tokens`.
    """
    common = [n_common(a.ids, b.ids) for a, b in pairwise(rows)]
    cost, last_start = [0], [0]
    for n in range(1, len(rows) + 1):
        candidates = [(cost[m] + tokens, m) for m, tokens in _group_tokens(rows, common, n)]
        best, m = min(candidates, key=lambda candidate: candidate[0])
        cost.append(best)
        last_start.append(m)
    groups, end = [], len(rows)
    while end:
        groups.append(list(rows[last_start[end] : end]))
        end = last_start[end]
    return groups


def _group_tokens(rows: Sequence[_Row], common: Sequence[int], n: int) -> Iterator[tuple[int, int]]:
    """Yield m and tokens(m, n), the cost of the group rows[m:n], for m = n - 1 and down as long as the rows share a prefix.

    With |x| the tokens of row x, and P(m, n) the prefix that rows[m:n] share, as far as none of its hidden states is needed:

        tokens(n - 1, n) = |rows[n - 1]|
        tokens(m, n) = sum of |x| over rows[m:n] - (n - m - 1) * P(m, n) + MIN_SAVING

    Args:
        common: common[i] is the number of tokens that rows i and i + 1 share.
    """
    total, prefix = len(rows[n - 1].ids), rows[n - 1].first
    yield n - 1, total
    for m in range(n - 2, max(n - 1 - MAX_GROUP, -1), -1):
        total += len(rows[m].ids)
        prefix = min(prefix, common[m], rows[m].first)  # P(m, n) from P(m + 1, n)
        if prefix == 0:
            return
        yield m, total - (n - m - 1) * prefix + MIN_SAVING


def _forward(model: GPT, groups: Sequence[list[_Row]], batch_size: int) -> Iterator[tuple[list[_Row], list[Tensor]]]:
    """Yield the rows of a batch, and for each its hidden states (T, C) from position `first` on."""
    single = sorted((group[0] for group in groups if len(group) == 1), key=lambda row: -len(row.ids))
    for i in range(0, len(single), batch_size):
        batch = single[i : i + batch_size]
        lengths = [len(row.ids) for row in batch]
        ids = torch.tensor([token for row in batch for token in row.ids], device=model.device)
        hidden = model.hidden(ids[None], lengths)[0].split(lengths)
        yield batch, [h[row.first :] for row, h in zip(batch, hidden, strict=True)]
    for group in groups:
        if len(group) > 1:
            yield from _forward_after_prefix(model, group, batch_size)


def _forward_after_prefix(model: GPT, group: list[_Row], batch_size: int) -> Iterator[tuple[list[_Row], list[Tensor]]]:
    """Yield as `_forward` does, for sorted rows that continue one prefix."""
    device = model.device
    P = min(n_common(group[0].ids, group[-1].ids), *(row.first for row in group))
    prefix = model.make_cache(1, P)
    model.hidden(torch.tensor([group[0].ids[:P]], device=device), cache=prefix)
    group = sorted(group, key=lambda row: -len(row.ids))
    for i in range(0, len(group), batch_size):
        batch = group[i : i + batch_size]
        # (B, T), padded on the right, where no other token sees it
        ids = pad_sequence([torch.tensor(row.ids[P:]) for row in batch], batch_first=True).to(device)
        B, T = ids.shape
        cache = model.make_cache(B, P + T)
        cache.put(slice(None), prefix)
        cache.length = P + T
        positions = torch.arange(P, P + T, device=device).expand(B, T)
        hidden = model.hidden(ids, cache=cache, positions=positions)
        yield batch, [h[row.first - P : len(row.ids) - P] for row, h in zip(batch, hidden, strict=True)]


def _span_scores(
    model: GPT, spans: Sequence[Span], batch: Sequence[_Row], hidden: Sequence[Tensor]
) -> Iterator[tuple[int, Score]]:
    """Yield the index and the score of each span of a batch."""
    members, states, targets = [], [], []
    for row, h in zip(batch, hidden, strict=True):
        for i in row.members:
            end = len(spans[i].ids) - 1 - row.first
            members.append(i)
            states.append(h[end - spans[i].n_scored : end])
            targets += spans[i].ids[-spans[i].n_scored :]
    found = _log_probs(model, torch.cat(states), torch.tensor(targets, device=states[0].device))
    log_probs, greedy = (values.split([len(h) for h in states]) for values in found)
    for i, p, g in zip(members, log_probs, greedy, strict=True):
        yield i, Score(p.tolist(), bool(g.all()))


def _log_probs(model: GPT, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p of targets (M,) given hidden states (M, C), and whether each is the most likely token, on the CPU."""
    n_rows = max(1, CHUNK_LOGITS // model.config.vocab_size)
    log_probs, greedy = [], []
    for h, t in zip(hidden.split(n_rows), targets.split(n_rows), strict=True):
        logits = model.head(h).float()  # (n_rows, V)
        log_probs.append(logits.gather(1, t[:, None])[:, 0] - logits.logsumexp(-1))
        greedy.append(logits.argmax(-1) == t)
    return torch.cat(log_probs).cpu(), torch.cat(greedy).cpu()
