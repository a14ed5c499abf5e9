"""What a run is about to train on, told and judged before any weight is loaded."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

from lit_llm.data import Example, Pair, Plan
from lit_llm.tokenizer import Tokenizer

Record = dict[str, Any]
TRAINED, PLAIN = "\033[32m", "\033[0m"


@dataclass(frozen=True)
class Preflight:
    """Counts over the training examples that were kept."""

    n_records: int
    n_examples: int
    n_dropped: int
    """Longer than the limit, or without a token to train on."""
    n_duplicates: int
    """Records that repeat an earlier one."""
    n_leaks: int
    """Validation records that are training records too."""
    n_tokens: int
    n_trained: int
    n_documents: int
    n_bos: int
    """Documents that start with BOS."""
    n_double_bos: int
    n_eos: int
    """Documents that end in EOS, but for what a template puts behind it."""
    same_end: bool
    """All documents end in the same token, as where a template closes the turn in another way."""
    longest: int
    packing_efficiency: float
    """Tokens over the room of the micro-batches of the first epoch."""

    def text(self) -> str:
        """Lines for a person to read."""
        return "\n".join(
            [
                f"examples        {self.n_examples:,} of {self.n_records:,}; {self.n_dropped:,} dropped, "
                f"{self.n_duplicates:,} repeated, {self.n_leaks:,} of the validation also in training",
                f"tokens          {self.n_tokens:,}, of them trained {self.n_trained:,} ({self.n_trained / self.n_tokens:.1%})",
                f"BOS and EOS     {self.n_bos:,} and {self.n_eos:,} in {self.n_documents:,} documents",
                f"longest         {self.longest:,} tokens",
                f"micro-batches   {self.packing_efficiency:.1%} full",
            ]
        )

    def check(self) -> None:
        """Raises ValueError if the run would train on nothing, or on documents with two BOS, or on none with EOS."""
        mistakes = []
        if self.n_trained == 0:
            mistakes.append("nothing would be trained: no example has a token with a label")
        if self.n_double_bos:
            mistakes.append(
                f"{self.n_double_bos} documents start with two BOS: the prompt style renders one beside the tokenizer's. "
                "Choose another --prompt_style"
            )
        if self.n_eos == 0 and not self.same_end:
            mistakes.append("no document ends in EOS: the model would never learn to stop. Check the tokenizer's eos_token")
        if mistakes:
            raise ValueError("\n".join(mistakes))


def inspect(
    records: Sequence[Record],
    val_records: Sequence[Record],
    examples: Sequence[Example | Pair],
    tokenizer: Tokenizer,
    plan: Plan,
) -> Preflight:
    documents = [document for example in examples for document in example.documents]
    ids = [document.ids.tolist() for document in documents]
    bos, ends = tokenizer.bos_id, set(tokenizer.eos_ids)
    seen = [json.dumps(record, sort_keys=True) for record in records]
    known = set(seen)
    n_tokens = sum(map(len, documents))
    return Preflight(
        n_records=len(records),
        n_examples=len(examples),
        n_dropped=len(records) - len(examples),
        n_duplicates=len(seen) - len(known),
        n_leaks=sum(json.dumps(record, sort_keys=True) in known for record in val_records),
        n_tokens=n_tokens,
        n_trained=sum(document.n_labels for document in documents),
        n_documents=len(documents),
        n_bos=sum(bos is not None and row[0] == bos for row in ids),
        n_double_bos=sum(bos is not None and row[:2] == [bos, bos] for row in ids),
        n_eos=sum(not ends.isdisjoint(row[-3:]) for row in ids),
        same_end=len({row[-1] for row in ids}) == 1,
        longest=max(map(len, documents)),
        packing_efficiency=_efficiency(plan),
    )


def _efficiency(plan: Plan) -> float:
    """Tokens over room; a micro-batch that is not packed has the room of its longest example for each."""
    used = room = 0
    for step in range(plan.steps_per_epoch):
        for group in plan.micro_batches(step):
            used += sum(plan.lengths[i] for i in group)
            most = max(plan.lengths[i] for i in group)
            room += plan.micro_batch_size * plan.max_tokens if plan.packing else len(group) * most
    return used / room


def show(example: Example | Pair, tokenizer: Tokenizer, colour: bool) -> str:
    """The text of an example's documents, with [BOS] and [EOS]. What is trained is green, or in «» where there is no colour."""
    opened, closed = (TRAINED, PLAIN) if colour else ("«", "»")
    texts = []
    for document in example.documents:
        trained = [False, *document.trained.tolist()[1:]]  # the first token is never predicted
        runs = groupby(zip(document.ids.tolist(), trained, strict=True), key=itemgetter(1))
        parts = [(_text([i for i, _ in run], tokenizer), on) for on, run in runs]
        texts.append("".join(f"{opened}{text}{closed}" if on else text for text, on in parts))
    return "\n".join(texts)


def _text(ids: list[int], tokenizer: Tokenizer) -> str:
    """Decoded ids, BOS and EOS by name: decoding leaves them out."""
    names = {tokenizer.bos_id: "[BOS]", **dict.fromkeys(tokenizer.eos_ids, "[EOS]")}
    runs = groupby(ids, key=lambda i: names.get(i))
    return "".join(name * len(list(run)) if name else tokenizer.decode(list(run)) for name, run in runs)
