"""From records to tokens and labels, and from examples to the micro-batches of each optimizer step.

N tokens of a micro-batch, M of them have a label.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.prompts import prompt_style
from lit_llm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Example:
    """One training document: its tokens, and for each whether the model is trained to predict it."""

    ids: Tensor  # (T,) int32
    trained: Tensor  # (T,) bool; the first token is never predicted

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def documents(self) -> tuple["Example", ...]:
        return (self,)

    @property
    def n_labels(self) -> int:
        return int(self.trained[1:].sum())

    @property
    def n_targets(self) -> int:
        """What the loss is divided by: labels."""
        return self.n_labels


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, for preference learning. The loss counts pairs."""

    chosen: Example
    rejected: Example
    n_targets: int = 1

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)

    @property
    def documents(self) -> tuple[Example, ...]:
        return (self.chosen, self.rejected)

    @property
    def n_labels(self) -> int:
        return self.chosen.n_labels + self.rejected.n_labels


@dataclass(frozen=True)
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


PAIR = ("prompt", "chosen", "rejected")


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of a `.jsonl` file, one JSON object a line.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with file and line, for a line that is not UTF-8, not a JSON object, or not a complete record.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Write it with a prepare script, e.g. scripts/prepare_alpaca.py")
    records = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                if line.strip():
                    records.append(json.loads(line.decode("utf-8").rstrip()))
                    check_record(records[-1])
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}:{error.colno}: not JSON ({error.msg})") from error
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
    if not records:
        raise ValueError(f"{path} is empty: there is nothing to train on")
    return records


def check_record(record: Any) -> None:
    """Raises ValueError unless `record` is a complete instruction row, text or preference pair."""
    if not isinstance(record, dict):
        raise ValueError(f"a record must be a JSON object, found {type(record).__name__}")
    required = ("text",) if "text" in record else PAIR if "chosen" in record else ("instruction", "output")
    for name in required:
        if name not in record:
            raise ValueError(f"the record has no {name!r}; found {', '.join(map(repr, record)) or 'nothing'}")
        if not isinstance(record[name], str):
            raise ValueError(f"{name!r} must be a text, found {json.dumps(record[name])[:40]}")
        if not record[name].strip():
            raise ValueError(f"{name!r} is empty")
    if not isinstance(record.get("input") or "", str):
        raise ValueError("'input' must be a text")


def tokenize(record: dict[str, Any], style: str, tokenizer: Tokenizer, mask_prompt: bool) -> Example | Pair:
    """Tokens and labels of a record.

    Prompt and answer are tokenized apart, so that the boundary lies where it lies at inference. EOS ends every document and is
    trained; BOS and, with `mask_prompt`, the prompt are not. Of a preference pair only the answers have labels.
    """
    if "text" in record:
        return _document(tokenizer.encode(""), record["text"], tokenizer, mask_prompt)
    if "chosen" in record:
        prompt = tokenizer.encode(prompt_style(style)(record["prompt"], ""))
        chosen, rejected = (_document(prompt, record[name], tokenizer, True) for name in ("chosen", "rejected"))
        return Pair(chosen, rejected)
    prompt = tokenizer.encode(prompt_style(style)(record["instruction"], record.get("input") or ""))
    return _document(prompt, record["output"], tokenizer, mask_prompt)


def _document(prompt: list[int], answer: str, tokenizer: Tokenizer, mask_prompt: bool) -> Example:
    ids = torch.tensor(prompt + tokenizer.encode(answer, bos=False, eos=True), dtype=torch.int32)
    trained = torch.ones(len(ids), dtype=torch.bool)
    trained[: len(prompt) if mask_prompt else 0] = False
    return Example(ids, trained)


def tokenize_all(
    records: Sequence[dict[str, Any]], style: str, tokenizer: Tokenizer, mask_prompt: bool, max_seq_length: int
) -> tuple[list[Example | Pair], int]:
    """Examples whose documents have at most `max_seq_length` tokens, and the number of longer ones that were dropped.

    An over-long example is dropped whole: cut short, it would teach the model to stop, or not to stop, at a random place.
    """
    examples = [tokenize(record, style, tokenizer, mask_prompt) for record in records]
    kept = [e for e in examples if all(len(d) <= max_seq_length and d.n_labels for d in e.documents)]
    return kept, len(examples) - len(kept)


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
class Plan:
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
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        return order[first * self.global_batch_size : (first + 1) * self.global_batch_size].tolist()

    def micro_batches(self, step: int) -> list[list[int]]:
        """Indices of the examples of each micro-batch of a step."""
        return lay_out(self.examples(step), self.lengths, self.micro_batch_size, self.max_tokens, self.packing)


def lay_out(
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


def batches(groups: Sequence[Sequence[int]], examples: Sequence[Example | Pair]) -> Iterator[MicroBatch]:
    return (collate([examples[i] for i in group]) for group in groups)
