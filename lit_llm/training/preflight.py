"""What a run is about to train on, told and judged before any weight is loaded."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

from lit_llm.args.data import InspectDataArgs
from lit_llm.args.finetune import TrainArgs
from lit_llm.checkpoint.load import load_tokenizer
from lit_llm.checkpoint.read import read_config
from lit_llm.data.batches import StepPlan
from lit_llm.data.examples import Example, Pair, drop_long
from lit_llm.data.prepare import prepared
from lit_llm.data.records import Record, answer_of, asked, iter_records
from lit_llm.data.token_cache import examples_of, style_of
from lit_llm.text.conversation import TrainOn, closing_of, prompt_ids, prompt_style
from lit_llm.text.tokenizer import Tokenizer

GREEN, PLAIN = "\033[32m", "\033[0m"
COMPARED = 1000  # records, from the first on, that are held against their tokens


@dataclass(frozen=True)
class Preflight:
    """Counts over the training examples that were kept."""

    n_examples: int
    n_dropped: int
    """Longer than the limit, or without a token to train on."""
    n_duplicates: int
    """Examples that repeat an earlier one."""
    n_leaks: int
    """Validation examples that are training examples too."""
    n_tokens: int
    n_trained: int
    n_documents: int
    n_bos: int
    """Documents that start with BOS."""
    n_double_bos: int
    n_eos: int
    """Documents that end in EOS."""
    n_double_eos: int
    n_closed: int
    """Others that end in what the template closes a turn with."""
    n_open: int
    """Other answers: the model would not learn to end them."""
    longest: int
    packing_efficiency: float
    """Tokens over the room of the micro-batches of the first epoch."""
    digest: str
    """Of tokens and labels of all examples, in their order."""
    val_digest: str

    def text(self) -> str:
        """Lines for a person to read."""
        n_texts = self.n_documents - self.n_eos - self.n_closed - self.n_open
        others = (
            (self.n_closed, "closed otherwise by the template"),
            (n_texts, "without a masked prompt that end otherwise, as parts of texts do"),
            (self.n_open, "answers that never end"),
        )
        return "\n".join(
            [
                f"examples        {self.n_examples:,} of {self.n_examples + self.n_dropped:,}; {self.n_dropped:,} dropped, "
                f"{self.n_duplicates:,} repeated, {self.n_leaks:,} of the validation also in training",
                f"tokens          {self.n_tokens:,}, of them trained {self.n_trained:,} ({self.n_trained / self.n_tokens:.1%})",
                f"BOS and EOS     {self.n_bos:,} and {self.n_eos:,} in {self.n_documents:,} documents"
                + "".join(f"; {n:,} {what}" for n, what in others if n),
                f"longest         {self.longest:,} tokens",
                f"micro-batches   {self.packing_efficiency:.1%} full",
            ]
        )

    def check(self) -> None:
        """Raises ValueError if the run would train on nothing, on two BOS or EOS, or on answers that do not end."""
        mistakes = []
        if self.n_trained == 0:
            mistakes.append("nothing would be trained: no example has a token with a label")
        if self.n_double_bos:
            mistakes.append(
                f"{self.n_double_bos} documents start with two BOS: the data itself, or the prompt style, begins with one "
                "beside the tokenizer's. Take it out of the data, or choose another --prompt_style"
            )
        if self.n_double_eos:
            mistakes.append(
                f"{self.n_double_eos} documents end in two EOS: the data itself ends in one, and every text and answer is "
                "given one. Take it out of the data"
            )
        if self.n_open:
            mistakes.append(
                f"{self.n_open} of {self.n_documents} answers do not end in EOS, nor in what closes a turn: the model would "
                "not learn to stop. Check the tokenizer's eos_token, or choose another --prompt_style"
            )
        if mistakes:
            raise ValueError("\n".join(mistakes))


def load_examples(
    path: Path, style: str, tokenizer: Tokenizer, mask_prompt: bool, train_on: TrainOn, max_seq_length: int
) -> tuple[list[Example | Pair], int]:
    """Examples of a `.jsonl` file, checked against its records, and the number of longer ones that were left out.

    Raises:
        ValueError: see `compare`; or if no example is left.
    """
    examples = examples_of(path, style, tokenizer, mask_prompt, train_on)
    compare(iter_records(path), examples, style, tokenizer)
    kept, n_dropped = drop_long(examples, max_seq_length)
    if not kept:
        raise ValueError(
            f"{path}: all {n_dropped} examples are longer than {max_seq_length} tokens. Raise --max_seq_length, or cut them"
        )
    return kept, n_dropped


def compare(records: Iterator[Record], examples: Sequence[Example | Pair], style: str, tokenizer: Tokenizer) -> None:
    """Hold the first records against their tokens, whatever way these came.

    Raises:
        ValueError: if a document does not begin with the tokens that the model is asked with, which is so where a token
            reaches from the prompt into the answer; or if a part of the answer is not in it.
    """
    for number, (record, example) in enumerate(islice(zip(records, examples, strict=True), COMPARED), 1):
        if "text" in record:
            continue
        prompt = prompt_ids(style, tokenizer, asked(record))
        for document, answer in zip(example.documents, _answers(record), strict=True):
            ids = document.ids.tolist()
            if ids[: len(prompt)] != prompt:
                raise ValueError(f"record {number}: prompt and answer are not parted as the model is asked: inside a token")
            trained = _squeezed(tokenizer.decode(ids[len(prompt) :]))
            if _squeezed(tokenizer.decode(tokenizer.encode_more(answer))) not in trained:
                raise ValueError(f"record {number}: a truncated answer would be trained as if it were finished")


def _answers(record: Record) -> tuple[str, ...]:
    if "chosen" in record:
        return record["chosen"], record["rejected"]
    return (answer_of(record),)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def inspect(
    examples: Sequence[Example | Pair],
    val_examples: Sequence[Example | Pair],
    n_dropped: int,
    style: str,
    tokenizer: Tokenizer,
    plan: StepPlan,
) -> Preflight:
    """Counts over examples. Beside them only a checksum of each is held."""
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
        elif not document.trained[1:].all():  # what has no masked prompt is a text, and its parts go on
            closing = closing or closing_of(prompt_style(style, tokenizer), tokenizer.special_tokens)
            end = document.ids[-len(closing) - 8 :].tolist()
            n["closed" if closing and tokenizer.decode_visibly(end).endswith(closing) else "open"] += 1
    return Preflight(
        n_examples=len(examples),
        n_dropped=n_dropped,
        n_duplicates=len(seen) - len(known),
        n_leaks=sum(digest in known for digest in val_seen),
        longest=longest,
        packing_efficiency=_efficiency(plan),
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


def _efficiency(plan: StepPlan) -> float:
    """Tokens over room; a micro-batch that is not packed has the room of its longest example for each."""
    used = room = 0
    for step in range(plan.steps_per_epoch):
        for group in plan.pack(plan.examples(step)):
            used += sum(plan.lengths[i] for i in group)
            most = max(plan.lengths[i] for i in group)
            room += plan.micro_batch_size * plan.max_tokens if plan.packing else len(group) * most
    return used / room


def show(example: Example | Pair, tokenizer: Tokenizer, colour: bool) -> str:
    """The text of an example's documents, special tokens as they are written. What is trained is green, or between ⟦ and ⟧."""
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


def inspect_data(args: InspectDataArgs) -> None:
    """Print some examples and then what finetuning tells before it starts.

    Raises:
        ValueError: if finetuning would refuse the data.
    """
    config = read_config(args.checkpoint_dir)
    tokenizer = load_tokenizer(args.checkpoint_dir, config)
    data_dir = prepared(args.data_dir) if args.data_dir.is_file() else args.data_dir
    paths = [data_dir / f"{name}.jsonl" for name in (args.split, "val")]
    style = args.prompt_style or style_of(paths[0], tokenizer)
    limit = min(args.max_seq_length or config.block_size, config.block_size)
    found = [load_examples(path, style, tokenizer, args.mask_prompt, args.train_on, limit) for path in paths if path.is_file()]
    examples, n_dropped = found[0]
    for number, example in enumerate(examples[: args.num_examples], 1):
        print(f"--- example {number} of {len(examples)}")
        print(show(example, tokenizer, sys.stdout.isatty()))
    val_examples = found[1][0] if args.split == "train" and len(found) > 1 else []
    lengths, train = [len(example) for example in examples], TrainArgs()
    plan = StepPlan(lengths, train.global_batch_size, train.micro_batch_size, max(lengths), train.packing, 0)
    preflight = inspect(examples, val_examples, n_dropped, style, tokenizer, plan)
    print(f"---\nstyle           {style}\n{preflight.text()}")
    preflight.check()
