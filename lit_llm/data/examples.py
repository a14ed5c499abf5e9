"""Examples: the token ids of a record, and which of them are trained."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_llm.data.records import Record, asked, turns_of, variables_of
from lit_llm.errors import DataError
from lit_llm.text.conversation import TrainOn, check_rendered, closing_of, conversation, encode, prompt_style, unrendered
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


def tokenize(
    record: Record, style: Style | str, tokenizer: Tokenizer, mask_prompt: bool, train_on: TrainOn = "all"
) -> Example | Pair:
    """Return the tokens and labels of a record.

    Prompt and answer are tokenized separately, so that the boundary is the same as at inference. EOS, or the token that closes
    the turn, is trained; BOS and, with `mask_prompt`, the prompt are not. Only the answers of a preference pair are labelled. A
    text that continues in the next record has no EOS.

    Raises:
        DataError: if the style cannot render the record, or the tokenizer has no EOS.
    """
    style = prompt_style(style, tokenizer) if isinstance(style, str) else style
    if "text" in record:
        start = tokenizer.encode("")
        ids = tokenizer.encode(record["text"], bos=False, eos=not record.get("continues", False))
        return _example(start + ids, [not mask_prompt] * len(start) + [True] * len(ids), True)
    if tokenizer.eos_id is None:
        raise DataError("the tokenizer has no EOS token, which must end every answer")
    check_rendered(style, turns_of(record), tokenizer.special_tokens, variables_of(record))
    tokens = {**variables_of(record), **tokenizer.special_tokens}
    if "chosen" in record:
        history = asked(record)
        both = ([*history, {"role": "assistant", "content": record[name]}] for name in ("chosen", "rejected"))
        documents = [encode(conversation(style, messages, tokens, "last"), tokenizer) for messages in both]
        chosen, rejected = (_example(ids, trained, True) for ids, trained in documents)
        return Pair(chosen, rejected)
    if not mask_prompt and any(message.get("weight") == 0 for message in record.get("messages", ())):
        raise DataError("an answer has weight 0, which `mask_prompt` false would train. Use `mask_prompt` true")
    return _example(*encode(conversation(style, turns_of(record), tokens, train_on), tokenizer), mask_prompt)


def answer_text(record: Record, style: Style | str, tokenizer: Tokenizer) -> str:
    """Return the answer of a record, except plain text, as a model that learned it writes it: with thoughts and calls of tools,
    without special tokens and the space around it."""
    style = prompt_style(style, tokenizer) if isinstance(style, str) else style
    tokens = {**variables_of(record), **tokenizer.special_tokens}
    text = conversation(style, turns_of(record), tokens, "last")[-1].text.removesuffix(closing_of(style, tokens))
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
    """Return the examples whose documents have at most `max_seq_length` tokens, and the number of dropped ones.

    An over-long example is dropped whole: truncated, it would teach the model to stop, or not to stop, at a random position.
    """
    style = prompt_style(style, tokenizer) if isinstance(style, str) else style
    return drop_long([tokenize(record, style, tokenizer, mask_prompt, train_on) for record in records], max_seq_length)


def drop_long(examples: Sequence[Example | Pair], max_seq_length: int) -> tuple[list[Example | Pair], int]:
    kept = [e for e in examples if all(len(d) <= max_seq_length and d.n_labels for d in e.documents)]
    return kept, len(examples) - len(kept)
