"""From records to tokens and labels, and from examples to the micro-batches of each optimizer step.

N tokens of a micro-batch, M of them have a label.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lit_llm.data.examples import Example, Pair


@dataclass  # not frozen: Fabric's autocast takes the inputs of a module apart
class MicroBatch:
    """Documents end to end, no padding. Labels are gathered: hidden state `positions[i]` predicts `targets[i]`."""

    ids: Tensor  # (1, N)
    lengths: tuple[int, ...]
    positions: Tensor  # (M,)
    targets: Tensor  # (M,)
    n_targets: int
    """What the sum of the loss is divided by: labels, or pairs."""

    def to(self, device: torch.device) -> "MicroBatch":
        moved = (tensor.to(device) for tensor in (self.ids, self.positions, self.targets))
        ids, positions, targets = moved
        return MicroBatch(ids, self.lengths, positions, targets, self.n_targets)


def collate(examples: Sequence[Example | Pair]) -> MicroBatch:
    """Lay the documents of examples end to end. Labels are shifted here, and only here."""
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
    """Which examples each optimizer step trains on, and how they are laid out: a pure function of the step.

    Each epoch is a new order that takes every example once; its last step may be short.
    """

    lengths: Sequence[int]
    """Tokens of each example."""
    global_batch_size: int
    """Examples per step."""
    micro_batch_size: int
    max_tokens: int
    """Longest example; times micro_batch_size the token budget of a packed micro-batch."""
    packing: bool
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.lengths) / self.global_batch_size)

    def examples(self, step: int) -> list[int]:
        """Indices of the examples of a step."""
        epoch, first = divmod(step, self.steps_per_epoch)
        order = _order(len(self.lengths), self.seed * 1_000_003 + epoch)
        return order[first * self.global_batch_size : (first + 1) * self.global_batch_size].tolist()

    def pack(self, indices: Sequence[int]) -> list[list[int]]:
        """The examples of a step in micro-batches."""
        return pack(indices, self.lengths, self.micro_batch_size, self.max_tokens, self.packing)

    def deal(self, indices: Sequence[int], n_ranks: int) -> list[list[list[int]]]:
        """The micro-batches of a step for each rank, as many for each: the last ones of a rank may be empty.

        The longest example first, each goes to the rank that has fewest tokens (Graham 1969, Bounds on multiprocessing timing
        anomalies, section 3).
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


@lru_cache(maxsize=1)
def _order(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def pack(
    indices: Sequence[int], lengths: Sequence[int], micro_batch_size: int, max_tokens: int, packing: bool
) -> list[list[int]]:
    """Group examples, longest first: first-fit-decreasing into a token budget if packing, else `micro_batch_size` each."""
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
    """The shortest example of this kind, without labels: for a rank that has no micro-batch left."""
    documents = [Example(document.ids[:1], torch.zeros(1, dtype=torch.bool)) for document in example.documents]
    return documents[0] if len(documents) == 1 else Pair(*documents, n_targets=0)


def batches(groups: Sequence[Sequence[int]], examples: Sequence[Example | Pair]) -> Iterator[MicroBatch]:
    return (collate([examples[i] for i in group]) for group in groups)
