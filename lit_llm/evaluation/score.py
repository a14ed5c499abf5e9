"""Log-likelihoods of the last tokens of texts, with what texts share at their beginning computed once.

B rows, T tokens, P tokens of a shared prefix, M scored tokens, C = n_embd, V vocabulary.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from lit_llm.methods.loss import CHUNK_LOGITS
from lit_llm.model.gpt import GPT

MIN_SAVING = 256  # tokens that sharing a prefix must save: it costs two more passes, of fewer tokens each
MAX_GROUP = 256  # rows that the search for shared prefixes looks back


@dataclass(frozen=True)
class Span:
    """Tokens of which the last `n_scored` are scored, given all before them."""

    ids: list[int]
    n_scored: int


@dataclass(frozen=True)
class Score:
    log_probs: list[float]
    """Of each scored token, in nats."""
    greedy: bool
    """Whether every scored token is the likeliest one."""


@dataclass
class _Row:
    """One sequence to compute, and the spans that it contains from its beginning on."""

    ids: list[int]
    first: int  # position of the earliest hidden state that is needed
    members: list[int] = field(default_factory=list)


def score(model: GPT, spans: Sequence[Span], batch_size: int, progress: str | None = None) -> list[Score]:
    """Score of each span.

    Spans with the same input tokens cost one row, as does one that another begins with. Rows with a long common beginning are
    computed after it, from a key/value cache; the others are packed end to end, without padding.

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
    shares = not _turns_by_length(model)
    rows = _rows(spans, shares)
    groups = _groups(rows) if shares else [[row] for row in rows]
    found: dict[int, Score] = {}
    with tqdm(total=len(spans), desc=progress, disable=progress is None) as bar, torch.inference_mode():
        for batch, hidden in _forward(model, groups, batch_size):
            for i, result in _read_off(model, spans, batch, hidden):
                found[i] = result
                bar.update()
    return [found[i] for i in range(len(spans))]


def _turns_by_length(model: GPT) -> bool:
    """Whether keys depend on the length of the whole text, so that a prefix's do not fit another text."""
    return model.rope is not None and model.rope.scaling["rope_type"] in ("dynamic", "longrope")


def _rows(spans: Sequence[Span], shares: bool) -> list[_Row]:
    """Rows in lexicographic order, in which a text and what begins with it are neighbours."""
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
    """The partition of neighbouring rows for which fewest tokens are computed (dynamic programming over its end)."""
    common = [0, *(_common(a.ids, b.ids) for a, b in itertools.pairwise(rows))]
    cost, start = [0], [0]  # of the best partition of the first n rows, and where its last group starts
    for n in range(1, len(rows) + 1):
        row = rows[n - 1]
        best, where, prefix, tokens = cost[n - 1] + len(row.ids), n - 1, row.first, len(row.ids)
        for first in range(n - 2, max(n - 1 - MAX_GROUP, -1), -1):
            prefix = min(prefix, common[first + 1], rows[first].first)
            if prefix == 0:
                break
            tokens += len(rows[first].ids)
            total = cost[first] + tokens - (n - first - 1) * prefix + MIN_SAVING
            if total < best:
                best, where = total, first
        cost.append(best)
        start.append(where)
    groups, end = [], len(rows)
    while end:
        groups.append(list(rows[start[end] : end]))
        end = start[end]
    return groups


def _common(a: list[int], b: list[int]) -> int:
    """Number of tokens in which both begin alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _forward(model: GPT, groups: Sequence[list[_Row]], batch_size: int) -> Iterator[tuple[list[_Row], list[Tensor]]]:
    """Rows of a batch, and for each the hidden states (T, C) from its position `first` on."""
    device = model.device
    single = sorted((group[0] for group in groups if len(group) == 1), key=lambda row: -len(row.ids))
    for i in range(0, len(single), batch_size):
        batch = single[i : i + batch_size]
        lengths = [len(row.ids) for row in batch]
        ids = torch.tensor([token for row in batch for token in row.ids], device=device)
        hidden = model.hidden(ids[None], lengths)[0].split(lengths)
        yield batch, [h[row.first :] for row, h in zip(batch, hidden, strict=True)]
    for group in groups:
        if len(group) > 1:
            yield from _forward_after_prefix(model, group, batch_size)


def _forward_after_prefix(model: GPT, group: list[_Row], batch_size: int) -> Iterator[tuple[list[_Row], list[Tensor]]]:
    device = model.device
    P = min(_common(group[0].ids, group[-1].ids), *(row.first for row in group))  # the rows are sorted
    prefix = model.make_cache(1, P)
    model.hidden(torch.tensor([group[0].ids[:P]], device=device), cache=prefix)
    group = sorted(group, key=lambda row: -len(row.ids))
    for i in range(0, len(group), batch_size):
        batch = group[i : i + batch_size]
        T = len(batch[0].ids) - P
        ids = torch.zeros(len(batch), T, dtype=torch.long)  # padded on the right, where no other token sees it
        for padded, row in zip(ids, batch, strict=True):
            padded[: len(row.ids) - P] = torch.tensor(row.ids[P:])
        cache = model.make_cache(len(batch), P + T)
        cache.put(slice(None), prefix)
        cache.length = P + T
        positions = torch.arange(P, P + T, device=device).expand(len(batch), T)
        hidden = model.hidden(ids.to(device), cache=cache, positions=positions)
        yield batch, [h[row.first - P : len(row.ids) - P] for row, h in zip(batch, hidden, strict=True)]


def _read_off(
    model: GPT, spans: Sequence[Span], batch: Sequence[_Row], hidden: Sequence[Tensor]
) -> Iterator[tuple[int, Score]]:
    """Index and score of each span of a batch."""
    states, targets, members = [], [], []
    for row, h in zip(batch, hidden, strict=True):
        for i in row.members:
            end = len(spans[i].ids) - 1 - row.first
            states.append(h[end - spans[i].n_scored : end])
            targets += spans[i].ids[-spans[i].n_scored :]
            members.append(i)
    log_probs, likeliest = _log_probs(model, torch.cat(states), torch.tensor(targets, device=states[0].device))
    done = 0
    for i in members:
        scored = slice(done, done + spans[i].n_scored)
        yield i, Score(log_probs[scored], all(likeliest[scored]))
        done += spans[i].n_scored


def _log_probs(model: GPT, hidden: Tensor, targets: Tensor) -> tuple[list[float], list[bool]]:
    """log p of targets (M,) given hidden states (M, C), and whether each is the likeliest, a chunk of logits at a time."""
    chunk = max(1, CHUNK_LOGITS // model.config.vocab_size)
    log_probs, likeliest = [], []
    for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        logits = model.head(h).float()  # (chunk, V)
        log_probs += (logits.gather(1, t[:, None])[:, 0] - logits.logsumexp(-1)).tolist()
        likeliest += (logits.argmax(-1) == t).tolist()
    return log_probs, likeliest
