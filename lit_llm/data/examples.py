"""Examples: the token ids of a record, and which of them are trained."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lit_llm.data.records import Record, asked, turns_of, unpaired_fields, variables_of
from lit_llm.errors import DataError
from lit_llm.text.conversation import TrainOn, check_rendered, closing_of, documents, encode, prompt_style, unrendered
from lit_llm.text.styles import Style
from lit_llm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Example:
    """One training document: its tokens, and a mask of those that the model learns to predict."""

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
        """Divisor of the loss: labels."""
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
    def is_equal(self) -> bool:
        """True if both answers are the same: the gradient of the loss is then 0."""
        return torch.equal(self.chosen.ids, self.rejected.ids)

    @property
    def n_labels(self) -> int:
        return self.chosen.n_labels + self.rejected.n_labels


@dataclass(frozen=True)
class Rewritten:
    """A conversation whose earlier turns the prompt style renders differently once others follow.

    Each document begins with the history as its own answers are asked. It becomes an example of its own; see `drop_long`.
    """

    documents: tuple[Example, ...]

    def __len__(self) -> int:
        return sum(map(len, self.documents))


def tokenize(
    record: Record, style: Style | str, tokenizer: Tokenizer, mask_prompt: bool, train_on: TrainOn = "all"
) -> Example | Pair | Rewritten:
    """Return the tokens and labels of a record.

    Prompt and answer are tokenized separately, so that the boundary is the same as at inference. EOS, or the token that closes
    the turn, is trained; BOS and, with `mask_prompt`, the prompt are not. Only the answers of a preference pair are labelled. A
    text that continues in the next record has no EOS.

    Args:
        train_on: Answers of a conversation: `all`, or the `last`; or a part of all answers: `thoughts`, each with whatever
            separates it from the content, or `answers`, which is the rest. A token of both is trained as a part of the answer.

    Raises:
        DataError: if the style cannot render the record, or the tokenizer has no EOS.
    """
    style = prompt_style(style, tokenizer) if isinstance(style, str) else style
    if fields := unpaired_fields(record):
        what = "unpaired feedback, as KTO trains on it" if "label" in fields else "a reference to check answers, as for GRPO"
        raise DataError(f"the record has {', '.join(fields)}: {what}. No script trains on it yet. Use conversations or pairs")
    if "text" in record:
        start = tokenizer.encode("")
        ids = tokenizer.encode(record["text"], bos=False, eos=not record.get("continues", False))
        return _example(start + ids, [not mask_prompt] * len(start) + [True] * len(ids), True)
    if tokenizer.eos_id is None:
        raise DataError("the tokenizer has no EOS token, which must end every answer")
    check_rendered(style, turns_of(record), tokenizer.special_tokens, variables_of(record))
    tokens = {**variables_of(record), **tokenizer.special_tokens}
    if "chosen" in record:
        if train_on in ("answers", "thoughts"):
            raise DataError(f"the answers of a preference pair are trained as a whole, not with `train_on` {train_on}")
        history = asked(record)
        both = ([*history, {"role": "assistant", "content": record[name]}] for name in ("chosen", "rejected"))
        chosen, rejected = (documents(style, messages, tokens, "last")[-1] for messages in both)
        return Pair(_example(*encode(chosen, tokenizer), True), _example(*encode(rejected, tokenizer), True))
    if not mask_prompt and any(message.get("weight") == 0 for message in record.get("messages", ())):
        raise DataError("an answer has weight 0, which `mask_prompt` false would train. Use `mask_prompt` true")
    rendered = documents(style, turns_of(record), tokens, train_on)
    first, *others = [_example(*encode(segments, tokenizer), mask_prompt) for segments in rendered]
    return Rewritten((first, *others)) if others else first


def answer_text(record: Record, style: Style | str, tokenizer: Tokenizer) -> str:
    """Return the answer of a record, except plain text, as a model that learned it writes it: with thoughts and calls of tools,
    without special tokens and the space around it."""
    style = prompt_style(style, tokenizer) if isinstance(style, str) else style
    tokens = {**variables_of(record), **tokenizer.special_tokens}
    turns = [{name: value for name, value in turn.items() if name != "weight"} for turn in turns_of(record)]
    text = documents(style, turns, tokens, "last")[-1][-1].text.removesuffix(closing_of(style, tokens))
    return tokenizer.decode(tokenizer.encode_more(text)).strip()


def unrendered_fields(record: Record, style: Style | str, tokenizer: Tokenizer) -> list[str]:
    """Return the names of a record's fields that the style does not render, one for each turn that has it."""
    if "text" in record:
        return []
    style = prompt_style(style, tokenizer) if isinstance(style, str) else style
    return unrendered(style, turns_of(record), tokenizer.special_tokens, variables_of(record))


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
    """Return the examples whose documents have at most `max_seq_length` tokens, and the number of dropped ones."""
    style = prompt_style(style, tokenizer) if isinstance(style, str) else style
    kept = drop_long([tokenize(record, style, tokenizer, mask_prompt, train_on) for record in records], max_seq_length)
    return kept.examples, kept.n_dropped


class Kept(NamedTuple):
    """Examples to train on, and counts."""

    examples: list[Example | Pair]
    n_dropped: int
    """Examples that are too long, or without a token to train on."""
    n_rewritten: int = 0
    """Conversations of several documents."""
    n_documents: int = 0
    """Their documents, each an example."""


def drop_long(found: Iterable[Example | Pair | Rewritten], max_seq_length: int) -> Kept:
    """Return the examples whose documents have at most `max_seq_length` tokens, and one to train on.

    A document that is too long is dropped whole: truncated, it would teach the model to stop, or not to stop, at a random
    position. Each document of a conversation that is rendered in several becomes an example, so that a step needs no more
    memory than for other data; those of answers that are not trained are ignored.
    """
    examples: list[Example | Pair] = []
    n_rewritten = n_documents = 0
    for example in found:
        if isinstance(example, Rewritten):
            parts = [document for document in example.documents if document.n_labels] or [example.documents[-1]]
            n_rewritten, n_documents = n_rewritten + 1, n_documents + len(parts)
            examples += parts
        else:
            examples.append(example)
    kept = [e for e in examples if all(len(d) <= max_seq_length and d.n_labels for d in e.documents)]
    return Kept(kept, len(examples) - len(kept), n_rewritten, n_documents)
