"""From records to tokens and labels, and from examples to the micro-batches of each optimizer step.

N tokens of a micro-batch, M of them have a label.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.text.conversation import TrainOn, check_messages, conversation, encode, prompt_style, question
from lit_llm.text.styles import Message, Style
from lit_llm.text.tokenizer import Tokenizer


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


Record = dict[str, Any]
PAIR = ("prompt", "chosen", "rejected")


def read_records(path: Path) -> list[Record]:
    """All records of a `.jsonl` file; see `iter_records`."""
    return list(iter_records(path))


def iter_records(path: Path) -> Iterator[Record]:
    """Records of a `.jsonl` file, one JSON object a line.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with file and line, for a line that is not UTF-8, no JSON object or no complete record; if there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Write it with a prepare script, e.g. scripts/prepare_alpaca.py")
    found = False
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8").rstrip())
                check_record(record)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}:{error.colno}: not JSON ({error.msg})") from error
            except RecursionError as error:
                raise ValueError(f"{path}:{number}: not read (nested too deeply)") from error
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
            found = True
            yield record
    if not found:
        raise ValueError(f"{path} is empty: there is nothing to train on")


def check_record(record: Any) -> None:
    """Raises ValueError unless `record` is a complete instruction row, conversation, text or preference pair."""
    if not isinstance(record, dict):
        raise ValueError(f"a record must be a JSON object, found {type(record).__name__}")
    if "chosen" not in record and "messages" in record:
        check_messages(record["messages"])
        check_trained(record["messages"])
        if all(turn.get("weight") == 0 for turn in record["messages"] if turn["role"] == "assistant"):
            raise ValueError("every answer has weight 0: nothing would be trained")
        _check_beside(record, "system")
        return
    required = ("text",) if "text" in record else PAIR if "chosen" in record else ("instruction", "output")
    for name in required:
        if name not in record:
            raise ValueError(f"the record has no {name!r}; found {', '.join(map(repr, record)) or 'nothing'}")
        if name == "prompt" and isinstance(record[name], list):
            check_messages([*record[name], {"role": "assistant", "content": "-"}])
            check_trained(record[name])
            _check_beside(record, "system", "input")
            continue
        if not isinstance(record[name], str):
            raise ValueError(f"{name!r} must be a text, found {json.dumps(record[name])[:40]}")
        if not record[name].strip():
            raise ValueError(f"{name!r} is empty")
    for name in ("input", "system"):
        if not isinstance(record.get(name) or "", str):
            raise ValueError(f"{name!r} must be a text")
    if "text" not in record and record.get("history"):
        raise ValueError("'history' would be left out: write it as turns of 'messages', or of a pair's 'prompt'")


def check_trained(turns: Iterable[Mapping[str, Any]]) -> None:
    """Raises ValueError for a turn that is not to be trained as it stands, as the chat format of OpenAI can say."""
    for turn in turns:
        if turn.get("weight") not in (None, 0, 1):
            raise ValueError(f"a turn has weight {json.dumps(turn['weight'])[:40]}: 0 and 1 are known")
        if turn.get("tool_calls") or turn.get("function_call"):
            raise ValueError("a turn calls a tool, which would be left out")


def _check_beside(record: Record, *names: str) -> None:
    """Raises ValueError for a field beside turns that would not be a part of what is asked."""
    for name in names:
        if record.get(name):
            raise ValueError(f"{name!r} stands beside turns and would be left out: make it one of the turns")


def asked(record: Record) -> list[Message]:
    """The conversation that a record, which is not plain text, wants answered."""
    if "chosen" not in record and "messages" in record:
        return record["messages"][:-1]
    asks = record["prompt" if "chosen" in record else "instruction"]
    return asks if isinstance(asks, list) else question(asks, record.get("input") or "", record.get("system") or "")


def answer_of(record: Record) -> str:
    """The answer that a record, which is not plain text, has for `asked`."""
    if "chosen" in record:
        return record["chosen"]
    return record["messages"][-1]["content"] if "messages" in record else record["output"]


def tokenize(
    record: Record, style: Style | str, tokenizer: Tokenizer, mask_prompt: bool, train_on: TrainOn = "all"
) -> Example | Pair:
    """Tokens and labels of a record.

    Prompt and answer are tokenized apart, so that the boundary lies where it lies at inference. EOS, or what closes the turn,
    is trained; BOS and, with `mask_prompt`, the prompt are not. Of a preference pair only the answers have labels. A text that
    goes on in the next record has no EOS.

    Raises:
        ValueError: if the style cannot render the record, or the tokenizer has no EOS.
    """
    style = prompt_style(style, tokenizer) if isinstance(style, str) else style
    if "text" in record:
        start = tokenizer.encode("")
        ids = tokenizer.encode(record["text"], bos=False, eos=not record.get("continues", False))
        return _example(start + ids, [not mask_prompt] * len(start) + [True] * len(ids), True)
    if tokenizer.eos_id is None:
        raise ValueError("this tokenizer has no EOS token")
    tokens = tokenizer.special_tokens
    if "chosen" in record:
        history = asked(record)
        both = ([*history, {"role": "assistant", "content": record[name]}] for name in ("chosen", "rejected"))
        documents = [encode(conversation(style, messages, tokens, "last"), tokenizer) for messages in both]
        chosen, rejected = (_example(ids, trained, True) for ids, trained in documents)
        return Pair(chosen, rejected)
    if not mask_prompt and any(message.get("weight") == 0 for message in record.get("messages", ())):
        raise ValueError("an answer has weight 0, which --mask_prompt false would train. Leave that out")
    messages = record.get("messages") or [*asked(record), {"role": "assistant", "content": answer_of(record)}]
    return _example(*encode(conversation(style, messages, tokens, train_on), tokenizer), mask_prompt)


def _example(ids: list[int], trained: list[bool], mask_prompt: bool) -> Example:
    labels = torch.tensor(trained) if mask_prompt else torch.ones(len(ids), dtype=torch.bool)
    return Example(torch.tensor(ids, dtype=torch.int32), labels)


def tokenize_all(
    records: Iterable[Record],
    style: Style | str,
    tokenizer: Tokenizer,
    mask_prompt: bool,
    max_seq_length: int,
    train_on: TrainOn = "all",
) -> tuple[list[Example | Pair], int]:
    """Examples whose documents have at most `max_seq_length` tokens, and the number of longer ones that were dropped.

    An over-long example is dropped whole: cut short, it would teach the model to stop, or not to stop, at a random place.
    """
    style = prompt_style(style, tokenizer) if isinstance(style, str) else style
    return drop_long([tokenize(record, style, tokenizer, mask_prompt, train_on) for record in records], max_seq_length)


def drop_long(examples: Sequence[Example | Pair], max_seq_length: int) -> tuple[list[Example | Pair], int]:
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
        order = _order(len(self.lengths), self.seed * 1_000_003 + epoch)
        return order[first * self.global_batch_size : (first + 1) * self.global_batch_size].tolist()

    def lay_out(self, indices: Sequence[int]) -> list[list[int]]:
        """The examples of a step in micro-batches."""
        return lay_out(indices, self.lengths, self.micro_batch_size, self.max_tokens, self.packing)

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
        dealt = [self.lay_out(share) for share in shares]
        most = max(map(len, dealt))
        return [groups + [[]] * (most - len(groups)) for groups in dealt]


@lru_cache(maxsize=1)
def _order(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


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


def empty_like(example: Example | Pair) -> Example | Pair:
    """The shortest example of this kind, without labels: for a rank that has no micro-batch left."""
    documents = [Example(document.ids[:1], torch.zeros(1, dtype=torch.bool)) for document in example.documents]
    return documents[0] if len(documents) == 1 else Pair(*documents, n_targets=0)


def batches(groups: Sequence[Sequence[int]], examples: Sequence[Example | Pair]) -> Iterator[MicroBatch]:
    return (collate([examples[i] for i in group]) for group in groups)
