"""The data of a run: examples, and counts that are shown and checked before any weight is loaded."""

import hashlib
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from lit_llm.args.data import InspectDataArgs
from lit_llm.args.finetune import TrainArgs
from lit_llm.checkpoint.load import load_tokenizer
from lit_llm.checkpoint.read import read_config
from lit_llm.data.batches import StepPlan
from lit_llm.data.examples import Example, Kept, Pair, Rewritten, drop_long, unrendered_fields
from lit_llm.data.mixture import sources_of
from lit_llm.data.prepare import data_folder
from lit_llm.data.records import Record, asked, turns_of, unpaired_fields, variables_of
from lit_llm.data.rows import ignored_fields, iter_records
from lit_llm.data.token_cache import CACHED_FROM, examples_of, style_of
from lit_llm.errors import DataError, OptionError
from lit_llm.text.conversation import (
    TrainOn,
    closing_of,
    document_ends,
    ends_with_all_of,
    prompt_ids,
    prompt_style,
    set_template_kwargs,
)
from lit_llm.text.styles import Message
from lit_llm.text.thoughts import split_thought
from lit_llm.text.tokenizer import Tokenizer

GREEN, PLAIN = "\033[32m", "\033[0m"
COMPARED = 1000  # records, from the first, that are compared with their tokens

Layout = list[list[list[int]]]
"""Micro-batches of a step for each rank: indices of examples."""


class Records(Iterable[Record]):
    """Records of a `.jsonl` file that several readers share: each line is parsed once.

    For a large file, whose tokens are cached, only the first `COMPARED` records are held; the others are parsed when tokenized.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        is_large = path.is_file() and path.stat().st_size >= CACHED_FROM
        self._n_held = COMPARED if is_large else sys.maxsize
        self._held: list[Record] = []
        self.ignored = Counter[str]()
        """Records with a field that is not part of them, by its name, among those that were parsed."""
        self._rest: Iterator[Record] | None = iter_records(path, self.ignored)

    def __iter__(self) -> Iterator[Record]:
        for i in itertools.count():
            if i == self._n_held:
                rest, self._rest = self._rest or islice(iter_records(self.path), i, None), None
                yield from rest
                return
            if i == len(self._held):
                assert self._rest is not None
                if (record := next(self._rest, None)) is None:
                    return
                self._held.append(record)
            yield self._held[i]


@dataclass(frozen=True)
class Preflight:
    """Counts over the training examples that were kept, in documents: a preference pair has two."""

    n_examples: int
    n_dropped: int
    """Examples longer than the limit, or without a token to train on."""
    n_duplicates: int
    """Examples that repeat an earlier one."""
    n_equal: int
    """Preference pairs with the same answer twice, which teach nothing."""
    n_leaks: int
    """Validation examples that are training examples too."""
    n_tokens: int
    n_trained: int
    n_documents: int
    n_bos: int
    n_double_bos: int
    n_eos: int
    n_double_eos: int
    n_closed: int
    """Documents without EOS that end in the template's closing of a turn."""
    n_open: int
    """Other answers: the model would not learn to end them."""
    longest: int
    sources: tuple[tuple[str, int, int], ...]
    """Name of each source, its examples, and how many of them an epoch draws; empty if all are drawn once."""
    n_rewritten: int
    """Conversations whose documents are examples of their own: the prompt style changes earlier turns once others follow."""
    n_parts: int
    """Their documents."""
    packing_efficiency: float
    """Tokens over the capacity of the micro-batches of the first epoch."""
    digest: str
    """Digest of the tokens and labels of all examples, in their order."""
    val_digest: str

    def text(self) -> str:
        """Return the counts as lines to print."""
        n_texts = self.n_documents - self.n_eos - self.n_closed - self.n_open
        equal = f", {self.n_equal:,} with the same answer twice" if self.n_equal else ""
        others = (
            (self.n_closed, "closed otherwise by the template"),
            (n_texts, "parts of texts, without an end"),
            (self.n_open, "answers without an end"),
        )
        rewritten = (
            f"conversations   {self.n_rewritten:,} in {self.n_parts:,} examples, as each answer is asked: the prompt style "
            "changes earlier turns once others follow"
        )
        return "\n".join(
            [
                f"examples        {self.n_examples:,} of {self.n_examples + self.n_dropped:,}; {self.n_dropped:,} dropped, "
                f"{self.n_duplicates:,} repeated{equal}, {self.n_leaks:,} of the validation also in training",
                *([rewritten] if self.n_rewritten else []),
                f"tokens          {self.n_tokens:,}, of them trained {self.n_trained:,} ({self.n_trained / self.n_tokens:.1%})",
                f"BOS and EOS     {self.n_bos:,} and {self.n_eos:,} in {self.n_documents:,} documents"
                + "".join(f"; {n:,} {what}" for n, what in others if n),
                f"longest         {self.longest:,} tokens",
                f"micro-batches   {self.packing_efficiency:.1%} full",
                *(
                    f"{name:15} {size:,} examples, an epoch draws {n:,} ({n / size:.2f} times each)"
                    for name, size, n in self.sources
                ),
            ]
        )

    def check(self) -> None:
        """Raise ValueError if the run would train on nothing, on two BOS or EOS, or on answers that do not end."""
        mistakes = []
        if self.n_trained == 0:
            mistakes.append("nothing would be trained: no example has a token with a label")
        if self.n_equal == self.n_examples:
            mistakes.append("nothing would be trained: in every pair the chosen and the rejected answer are the same")
        if self.n_double_bos:
            mistakes.append(
                f"{self.n_double_bos} documents start with two BOS: the data itself, or the prompt style, begins with one, and "
                "the tokenizer adds another. Remove it from the data, or choose another `prompt_style`"
            )
        if self.n_double_eos:
            mistakes.append(
                f"{self.n_double_eos} documents end in two EOS: the data itself ends in one, and every text and answer gets "
                "one. Remove it from the data"
            )
        if self.n_open:
            mistakes.append(
                f"{self.n_open} of {self.n_documents} answers do not end in EOS, nor in the closing of a turn: the model would "
                "not learn to stop. Check the tokenizer's eos_token, or choose another `prompt_style`"
            )
        if mistakes:
            raise DataError("\n".join(mistakes))


def load_examples(
    records: Records, style: str, tokenizer: Tokenizer, mask_prompt: bool, train_on: TrainOn, max_seq_length: int
) -> Kept:
    """Examples of a `.jsonl` file, checked against its records, and the number of dropped ones.

    Raises:
        ValueError: see `compare`; or if no example is left.
    """
    examples = examples_of(records.path, style, tokenizer, mask_prompt, train_on, records)
    unrendered = compare(records, examples, style, tokenizer)
    if n_thoughts := unrendered.pop("thought", 0):
        print(
            f"{records.path}: {n_thoughts:,} thoughts are not trained: the prompt style asks for answers without",
            file=sys.stderr,
        )
    if n_marks := unrendered.pop("marks", 0):
        print(f"{records.path}: {n_marks:,} answers are trained in part, as {{% generation %}} marks them", file=sys.stderr)
    for ignored, unit in ((records.ignored, "records"), (unrendered, "turns")):
        if ignored:
            print(f"{records.path}: {ignored_fields(ignored, unit)}", file=sys.stderr)
    kept = drop_long(examples, max_seq_length)
    if not kept.examples:
        raise DataError(
            f"{records.path}: all {kept.n_dropped} examples are longer than {max_seq_length} tokens, or have nothing to train "
            f"with `train_on` {train_on}. Raise `max_seq_length`, shorten them, or use `train_on` all"
        )
    return kept


def compare(
    records: Iterable[Record], examples: Sequence[Example | Pair | Rewritten], style: str, tokenizer: Tokenizer
) -> Counter[str]:
    """Compare the first records with their tokens, new or cached, and count the fields that the style does not render.

    Raises:
        ValueError: if a document does not begin with the tokens of its prompt at inference, as where a token reaches from the
            prompt into the answer; or if a part of the answer is not in it.
    """
    unrendered = Counter[str]()
    for number, (record, example) in enumerate(islice(zip(records, examples, strict=True), COMPARED), 1):
        if "text" in record:
            continue
        unrendered.update(unrendered_fields(record, style, tokenizer))
        variables = variables_of(record)
        for document, (before, answer) in zip(example.documents, _answers(record, example, style, tokenizer), strict=True):
            prompt = prompt_ids(style, tokenizer, before, finetuned=True, variables=variables)
            ids = document.ids.tolist()
            if ids[: len(prompt)] != prompt:
                raise DataError(f"record {number}: the boundary of prompt and answer is inside a token")
            whole, start, own = map(tokenizer.decode, (tokenizer.encode_more(answer), prompt, ids[len(prompt) :]))
            if not ends_with_all_of(whole, start, own):
                raise DataError(f"record {number}: a truncated answer would be trained as if it were finished")
    return unrendered


def _answers(
    record: Record, example: Example | Pair | Rewritten, style: str, tokenizer: Tokenizer
) -> list[tuple[Sequence[Message], str]]:
    """Return for each document the conversation before its last answer, and the content of that answer."""
    if "chosen" in record:
        return [(asked(record), split_thought({"content": record[name]})[1]) for name in ("chosen", "rejected")]
    turns = turns_of(record)
    ends = [len(turns)]
    if isinstance(example, Rewritten):
        ends = document_ends(prompt_style(style, tokenizer), turns, {**variables_of(record), **tokenizer.special_tokens})
    return [(turns[: end - 1], split_thought(turns[end - 1])[1]) for end in ends]


def inspect(
    examples: Sequence[Example | Pair],
    val_examples: Sequence[Example | Pair],
    counts: Kept,
    style: str,
    tokenizer: Tokenizer,
    plan: StepPlan,
    epoch: Sequence[Layout],
    names: Sequence[str] = (),
) -> Preflight:
    """Count over examples, whose first epoch is laid out as `epoch`. Only a digest of each example is held.

    Args:
        counts: Those of all training data, of which `examples` may be a part.
        names: Those of the sources.
    """
    seen, val_seen = ([_digest(example) for example in split] for split in (examples, val_examples))
    known = set(seen)
    bos, closing = tokenizer.bos_id, ""
    n = dict.fromkeys(("tokens", "trained", "documents", "bos", "double_bos", "eos", "double_eos", "closed", "open"), 0)
    longest = 0
    for document in (document for example in examples for document in example.documents):
        start = document.ids[:2].tolist()
        n["documents"] += 1
        n["tokens"] += len(document)
        n["trained"] += document.n_labels
        n["bos"] += start[0] == bos
        n["double_bos"] += bos is not None and start == [bos, bos]
        longest = max(longest, len(document))
        end = document.ids[-2:].tolist()
        n["double_eos"] += end[0] in tokenizer.eos_ids and end == [end[0]] * 2
        if int(document.ids[-1]) in tokenizer.eos_ids:
            n["eos"] += 1
        elif not document.trained[1:].all():  # a document without a masked prompt is a text, and may continue
            closing = closing or closing_of(prompt_style(style, tokenizer), tokenizer.special_tokens)
            end = document.ids[-len(closing) - 8 :].tolist()
            n["closed" if closing and tokenizer.decode_visibly(end).endswith(closing) else "open"] += 1
    return Preflight(
        n_examples=len(examples),
        n_dropped=counts.n_dropped,
        n_rewritten=counts.n_rewritten,
        n_parts=counts.n_documents,
        n_duplicates=len(seen) - len(known),
        n_equal=sum(isinstance(example, Pair) and example.is_equal for example in examples),
        n_leaks=sum(digest in known for digest in val_seen),
        longest=longest,
        sources=tuple(zip(names, plan.draws.sizes, plan.draws.counts, strict=True)) if plan.draws else (),
        packing_efficiency=_efficiency(plan, epoch),
        digest=_digest_of_all(examples, seen),
        val_digest=_digest_of_all(val_examples, val_seen),
        **{f"n_{name}": count for name, count in n.items()},
    )


def _digest_of_all(examples: Sequence[Example | Pair], seen: Sequence[bytes]) -> str:
    digest = hashlib.blake2b(b"".join(seen), digest_size=16)
    for document in (document for example in examples for document in example.documents):
        digest.update(document.trained.numpy().tobytes())
    return digest.hexdigest()


def _digest(example: Example | Pair) -> bytes:
    digest = hashlib.blake2b(digest_size=12)
    for document in example.documents:
        digest.update(document.ids.numpy().tobytes() + b"|")
    return digest.digest()


def first_epoch(plan: StepPlan, n_ranks: int = 1) -> list[Layout]:
    return [plan.deal(plan.examples(step), n_ranks) for step in range(plan.steps_per_epoch)]


def _efficiency(plan: StepPlan, epoch: Sequence[Layout]) -> float:
    """Tokens over capacity; a micro-batch that is not packed has that of its longest example for each of its examples."""
    groups = [group for layout in epoch for share in layout for group in share if group]
    most = plan.micro_batch_size * plan.max_tokens
    capacity = (most if plan.packing else len(group) * max(plan.lengths[i] for i in group) for group in groups)
    return sum(plan.lengths[i] for group in groups for i in group) / sum(capacity)


def show(example: Example | Pair, tokenizer: Tokenizer, colour: bool) -> str:
    """Return the text of an example, special tokens included. Trained tokens are green, or between ⟦ and ⟧."""
    opening, closing = (GREEN, PLAIN) if colour else ("⟦", "⟧")
    texts = []
    for document in example.documents:
        ids, text, end = document.ids.tolist(), "", 0
        trained = [False, *document.trained.tolist()[1:]]  # the first token is never predicted
        for on, run in groupby(enumerate(trained), key=itemgetter(1)):
            before = tokenizer.decode_visibly(ids[:end])
            end = [i for i, _ in run][-1] + 1
            part = tokenizer.decode_visibly(ids[:end])[len(before) :]  # decoded alone it might lose its leading space
            text += f"{opening}{part}{closing}" if on else part
        texts.append(text)
    return "\n--- rejected:\n".join(texts)


def _show_unpaired(records: Records, style: str, tokenizer: Tokenizer, num_examples: int) -> None:
    """Print prompts with their completions and labels, or their reference answers, and counts."""
    counts = Counter[Any]()
    for number, record in enumerate(records, 1):
        if not (fields := unpaired_fields(record)):
            raise DataError(f"{records.path}: record {number} has another form than the first. Use a file for each")
        counts[record.get("label")] += 1
        if number <= num_examples:
            ids = prompt_ids(style, tokenizer, asked(record), True, variables_of(record))
            print(f"--- example {number}\n{tokenizer.decode_visibly(ids)}")
            print("\n".join(f"--- {name}: {record[name]}" for name in fields[1:]))
    labels = f"; label true {counts[True]:,}, false {counts[False]:,}" if None not in counts else ""
    print(f"---\nstyle           {style}\nexamples        {sum(counts.values()):,}{labels}; no script trains on them yet")


def inspect_data(args: InspectDataArgs) -> None:
    """Print some examples, and then the counts that finetuning prints before it starts.

    Raises:
        ValueError: if finetuning would refuse the data.
    """
    config = read_config(args.checkpoint_dir)
    tokenizer = load_tokenizer(args.checkpoint_dir, config)
    source, *others = sources_of(args.data_dir)
    if others:
        raise OptionError(f"`data_dir` lists {1 + len(others)} sources. Inspect one at a time")
    data_dir = data_folder(source.path)
    paths = [data_dir / f"{name}.jsonl" for name in (args.split, "val")]
    style = args.prompt_style or style_of(paths[0], tokenizer)
    set_template_kwargs(tokenizer, args.template_kwargs, style)
    if unpaired_fields(next(iter_records(paths[0]))):
        return _show_unpaired(Records(paths[0]), style, tokenizer, args.num_examples)
    limit = min(args.max_seq_length or config.block_size, config.block_size)
    options = (style, tokenizer, args.mask_prompt, args.train_on, limit)
    found = [load_examples(Records(path), *options) for path in paths if path.is_file()]
    examples = found[0].examples
    for number, example in enumerate(examples[: args.num_examples], 1):
        print(f"--- example {number} of {len(examples)}")
        print(show(example, tokenizer, sys.stdout.isatty()))
    val_examples = found[1].examples if args.split == "train" and len(found) > 1 else []
    lengths, train = [len(example) for example in examples], TrainArgs()
    plan = StepPlan(lengths, train.global_batch_size, train.micro_batch_size, max(lengths), train.packing, 0)
    preflight = inspect(examples, val_examples, found[0], style, tokenizer, plan, first_epoch(plan))
    print(f"---\nstyle           {style}\n{preflight.text()}")
    preflight.check()
