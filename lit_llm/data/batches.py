"""Examples in the micro-batches of each optimizer step.

N tokens of a micro-batch, M of them with a label.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_llm.data.examples import Example, Pair
from lit_llm.data.mixture import Draws


@dataclass  # not frozen: Fabric's autocast rebuilds the inputs of a module
class MicroBatch:
    """Documents end to end, no padding. Labels are gathered: hidden state `positions[i]` predicts `targets[i]`."""

    ids: Tensor  # (1, N)
    lengths: tuple[int, ...]
    positions: Tensor  # (M,)
    targets: Tensor  # (M,)
    n_targets: int
    """Divisor of the loss sum: labels, or pairs."""

    def to(self, device: torch.device) -> "MicroBatch":
        ids, positions, targets = (tensor.to(device) for tensor in (self.ids, self.positions, self.targets))
        return MicroBatch(ids, self.lengths, positions, targets, self.n_targets)


def collate(examples: Sequence[Example | Pair]) -> MicroBatch:
    """Concatenate the documents of examples. Labels are shifted here, and only here."""
    documents = [document for example in examples for document in example.documents]
    positions, targets, start = [], [], 0
    for document in documents:
        where = document.trained[1:].nonzero().squeeze(1)
        positions.append(where + start)
        targets.append(document.ids[where + 1])
        start += len(document)
    ids = torch.cat([document.ids for document in documents]).long()[None]
    lengths, n_targets = tuple(map(len, documents)), sum(example.n_targets for example in examples)
    return MicroBatch(ids, lengths, torch.cat(positions), torch.cat(targets).long(), n_targets)


@dataclass(frozen=True)
class StepPlan:
    """Examples of each optimizer step, and their micro-batches, as a pure function of the step.

    Each epoch visits every example once in a new order, or those that `draws` say; its last step may be short.
    """

    lengths: Sequence[int]
    """Tokens of each example."""
    global_batch_size: int
    """Examples per step."""
    micro_batch_size: int
    max_tokens: int
    """Tokens of the longest example. A packed micro-batch holds at most micro_batch_size times that many."""
    packing: bool
    seed: int
    draws: Draws | None = None
    """Sources of the examples, if some are drawn more often than others."""

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.lengths) / self.global_batch_size)

    def examples(self, step: int) -> list[int]:
        """Return the indices of the examples of a step."""
        epoch, first = divmod(step, self.steps_per_epoch)
        order = self._draws.order(self.seed, epoch)
        return order[first * self.global_batch_size : (first + 1) * self.global_batch_size].tolist()

    def n_seen(self, step: int) -> list[int]:
        """Return how many examples of each source were drawn before a step."""
        epoch, first = divmod(step, self.steps_per_epoch)
        return self._draws.n_seen(self.seed, epoch, first * self.global_batch_size)

    @property
    def _draws(self) -> Draws:
        return self.draws or Draws((len(self.lengths),), (len(self.lengths),))

    def pack(self, indices: Sequence[int]) -> list[list[int]]:
        """Return micro-batches of examples."""
        return pack(indices, self.lengths, self.micro_batch_size, self.max_tokens, self.packing)

    def deal(self, indices: Sequence[int], n_ranks: int) -> list[list[list[int]]]:
        """Return the micro-batches of a step for each rank. All ranks have the same number; the last ones may be empty.

        Examples go, longest first, to the rank with the fewest tokens (Graham 1969, Bounds on multiprocessing timing anomalies,
        section 3).
        """
        shares: list[list[int]] = [[] for _ in range(n_ranks)]
        tokens = [0] * n_ranks
        for index in sorted(indices, key=lambda i: (-self.lengths[i], i)):
            rank = tokens.index(min(tokens))
            shares[rank].append(index)
            tokens[rank] += self.lengths[index]
        dealt = [self.pack(share) for share in shares]
        most = max(map(len, dealt))
        return [groups + [[]] * (most - len(groups)) for groups in dealt]


def pack(
    indices: Sequence[int], lengths: Sequence[int], micro_batch_size: int, max_tokens: int, packing: bool
) -> list[list[int]]:
    """Group examples, longest first, into micro-batches.

    With packing, an example goes into the first micro-batch that has room for its tokens (first-fit-decreasing, at most 11/9 of
    the optimal number plus 1). Without, every micro-batch has `micro_batch_size` examples of similar length.
    """
    ordered = sorted(indices, key=lambda i: (-lengths[i], i))
    if not packing:
        return [ordered[i : i + micro_batch_size] for i in range(0, len(ordered), micro_batch_size)]
    budget = micro_batch_size * max_tokens
    bins: list[list[int]] = []
    room: list[int] = []
    for index in ordered:
        fit = next((b for b, left in enumerate(room) if left >= lengths[index]), None)
        if fit is None:
            bins.append([])
            room.append(budget)
            fit = -1
        bins[fit].append(index)
        room[fit] -= lengths[index]
    return bins


def empty_like(example: Example | Pair) -> Example | Pair:
    """Return the shortest example of this kind, without labels, for a rank that has no micro-batch left."""
    documents = [Example(document.ids[:1], torch.zeros(1, dtype=torch.bool)) for document in example.documents]
    return documents[0] if len(documents) == 1 else Pair(*documents, n_targets=0)


def batches(groups: Sequence[Sequence[int]], examples: Sequence[Example | Pair]) -> Iterator[MicroBatch]:
    return (collate([examples[i] for i in group]) for group in groups)
