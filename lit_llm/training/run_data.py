"""The examples of a run, read once, and the layout of its steps, made once."""

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_llm.args.finetune import FinetuneArgs, TrainArgs
from lit_llm.data.batches import MicroBatch, StepPlan, batches, pack
from lit_llm.data.examples import Example, Kept, Pair
from lit_llm.data.mixture import Draws, Source, n_drawn, sources_of
from lit_llm.data.prepare import data_folder
from lit_llm.data.records import PAIR, Record
from lit_llm.errors import DataError, OptionError
from lit_llm.methods.method import Method
from lit_llm.text.conversation import default_style
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.training.preflight import Layout, Preflight, Records, first_epoch, inspect, load_examples


@dataclass(frozen=True)
class DataFiles:
    """Records of a source: a data folder, or rows, which are prepared first."""

    source: Source
    train: Records
    val: Records | None

    @classmethod
    def open(cls, source: Source) -> "DataFiles":
        folder = data_folder(source.path)
        val = folder / "val.jsonl"
        return cls(source, Records(folder / "train.jsonl"), Records(val) if val.is_file() else None)


def open_data(data_dir: Path) -> list[DataFiles]:
    """Open the sources that `data_dir` lists."""
    return [DataFiles.open(source) for source in sources_of(data_dir)]


def style_of_all(files: Sequence[DataFiles], tokenizer: Tokenizer) -> str:
    """Prompt style where none is given. The first record that is not plain text decides."""
    return default_style(tokenizer, all("text" in record for one in files for record in one.train))


def held_out_records(files: Sequence[DataFiles]) -> Iterator[Record]:
    """Yield the validation records of all sources in turn."""
    for row in itertools.zip_longest(*(one.val or () for one in files)):
        yield from (record for record in row if record is not None)


@dataclass(frozen=True)
class RunData:
    """Examples of a run, and the micro-batches of its steps."""

    examples: Sequence[Example | Pair]
    plan: StepPlan
    first_epoch: list[Layout]
    """Layout of each step of the first epoch; those of later epochs are made when they are asked for."""
    validation: Mapping[str, Sequence[MicroBatch]] = field(default_factory=dict)
    """By the names of the sources that have validation data."""
    identity: dict[str, Any] = field(default_factory=dict)
    """Digests of the examples, which a save keeps."""
    sources: tuple[str, ...] = ()
    """Names, if there are several."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the sources add to `metrics.csv`."""
        if not self.sources:
            return ()
        return (*(f"examples_{name}" for name in self.sources), *(f"val_loss_{name}" for name in self.validation))

    def n_seen(self, step: int) -> dict[str, int]:
        """Examples of each source that were drawn before a step, as columns."""
        names = (f"examples_{name}" for name in self.sources)
        return dict(zip(names, self.plan.n_seen(step), strict=True)) if self.sources else {}

    def layout(self, step: int) -> Layout:
        """Micro-batches of a step for each rank."""
        if step < len(self.first_epoch):
            return self.first_epoch[step]
        return self.plan.deal(self.plan.examples(step), len(self.first_epoch[0]))


def read_data(
    args: FinetuneArgs, method: Method, files: Sequence[DataFiles], tokenizer: Tokenizer, limit: int
) -> tuple[RunData, Preflight]:
    """Read the examples of a run, lay out its first epoch, and count.

    Args:
        limit: Tokens of the longest document; examples with longer ones are dropped.

    Raises:
        ValueError: if records and method do not fit, no example is left, or `eval.patience` lacks validation data.
    """
    train, names = args.train, [one.source.name for one in files]
    found = [_examples("training", one.train, args, method, tokenizer, limit) for one in files]
    kept = _joined(found)
    examples = kept.examples
    validation = {
        one.source.name: _examples("validation", one.val, args, method, tokenizer, limit).examples for one in files if one.val
    }
    draws = _draws([len(source.examples) for source in found], [one.source.weight for one in files])
    if train.overfit_batches is not None:
        if draws is not None:
            raise OptionError("`train.overfit_batches` needs one `data_dir`, without a weight")
        examples = examples[: train.overfit_batches * train.global_batch_size]
        validation = {names[0]: examples}
    if args.eval.patience is not None and not validation:
        raise OptionError(f"`eval.patience` needs validation data: {files[0].train.path.parent}/val.jsonl does not exist")
    lengths = [len(example) for example in examples]
    micro_batch_size = min(train.micro_batch_size, train.global_batch_size)
    plan = StepPlan(lengths, train.global_batch_size, micro_batch_size, max(lengths), train.packing, args.seed, draws)
    epoch = first_epoch(plan, args.devices * args.num_nodes)
    assert args.prompt_style is not None
    val_examples = [example for source in validation.values() for example in source]
    preflight = inspect(examples, val_examples, kept, args.prompt_style, tokenizer, plan, epoch, names)
    identity = {"n_examples": preflight.n_examples, "digest": preflight.digest, "validation": preflight.val_digest}
    batches_of = {name: _validation_batches(source, train) for name, source in validation.items()}
    return RunData(examples, plan, epoch, batches_of, identity, tuple(names) if draws else ()), preflight


def _joined(parts: Sequence[Kept]) -> Kept:
    """The examples of all sources in their order, and the sums of the counts."""
    counts = (sum(numbers) for numbers in zip(*(part[1:] for part in parts), strict=True))
    return Kept([example for part in parts for example in part.examples], *counts)


def _draws(sizes: Sequence[int], weights: Sequence[float | None]) -> Draws | None:
    """How often the examples of several sources are drawn."""
    return Draws(tuple(sizes), tuple(n_drawn(sizes, weights))) if len(sizes) > 1 else None


def _validation_batches(examples: Sequence[Example | Pair], train: TrainArgs) -> list[MicroBatch]:
    lengths = [len(example) for example in examples]
    return list(batches(pack(range(len(lengths)), lengths, train.micro_batch_size, max(lengths), train.packing), examples))


def _examples(kind: str, records: Records, args: FinetuneArgs, method: Method, tokenizer: Tokenizer, limit: int) -> Kept:
    """Examples of a file and the number of dropped ones."""
    assert args.prompt_style is not None
    kept = load_examples(records, args.prompt_style, tokenizer, args.mask_prompt, args.train_on, limit)
    examples = kept.examples
    if any(len(example.documents) != method.documents_per_example for example in examples):
        if method.documents_per_example > 1:
            raise DataError(
                f"{type(method).__name__} needs preference pairs, with {', '.join(PAIR)}; {records.path} has other records"
            )
        raise DataError(f"{records.path} has preference pairs (chosen, rejected). Train on them with finetune/dpo.py")
    n_tokens, n_targets = sum(map(len, examples)), sum(e.n_labels for e in examples)
    dropped = f"; {kept.n_dropped} dropped, longer than {limit} tokens or with nothing to train on" if kept.n_dropped else ""
    print(f"{kind}: {len(examples):,} examples, {n_tokens:,} tokens, {n_targets:,} trained{dropped}", file=sys.stderr)
    return kept
