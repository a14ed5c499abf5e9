"""The examples of a run, read once, and the layout of its steps, made once."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_llm.args.finetune import FinetuneArgs
from lit_llm.data.batches import MicroBatch, StepPlan, batches, pack
from lit_llm.data.examples import Example, Kept, Pair
from lit_llm.data.prepare import prepared
from lit_llm.data.records import PAIR
from lit_llm.errors import DataError, OptionError
from lit_llm.methods.method import Method
from lit_llm.text.conversation import default_style
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.training.preflight import Layout, Preflight, Records, first_epoch, inspect, load_examples


@dataclass(frozen=True)
class DataFiles:
    """Records of the data folder of a run."""

    folder: Path
    train: Records
    val: Records | None

    @classmethod
    def open(cls, data_dir: Path) -> "DataFiles":
        """Open a data folder, or that of a file of rows, which is prepared first."""
        folder = prepared(data_dir) if data_dir.is_file() else data_dir
        val = folder / "val.jsonl"
        return cls(folder, Records(folder / "train.jsonl"), Records(val) if val.is_file() else None)

    def style(self, tokenizer: Tokenizer) -> str:
        """Prompt style where none is given. The first record that is not plain text decides."""
        return default_style(tokenizer, all("text" in record for record in self.train))


@dataclass(frozen=True)
class RunData:
    """Examples of a run, and the micro-batches of its steps."""

    examples: Sequence[Example | Pair]
    plan: StepPlan
    first_epoch: list[Layout]
    """Layout of each step of the first epoch; those of later epochs are made when they are asked for."""
    validation: Sequence[MicroBatch] = ()
    identity: dict[str, Any] = field(default_factory=dict)
    """Digests of the examples, which a save keeps."""

    def layout(self, step: int) -> Layout:
        """Micro-batches of a step for each rank."""
        if step < len(self.first_epoch):
            return self.first_epoch[step]
        return self.plan.deal(self.plan.examples(step), len(self.first_epoch[0]))


def read_data(
    args: FinetuneArgs, method: Method, files: DataFiles, tokenizer: Tokenizer, limit: int
) -> tuple[RunData, Preflight]:
    """Read the examples of a run, lay out its first epoch, and count.

    Args:
        limit: Tokens of the longest document; examples with longer ones are dropped.

    Raises:
        ValueError: if records and method do not fit, no example is left, or `eval.patience` lacks validation data.
    """
    kept = _examples("training", files.train, args, method, tokenizer, limit)
    examples = kept.examples
    val_examples = [] if files.val is None else _examples("validation", files.val, args, method, tokenizer, limit).examples
    train = args.train
    if train.overfit_batches is not None:
        examples = val_examples = examples[: train.overfit_batches * train.global_batch_size]
    if args.eval.patience is not None and not val_examples:
        raise OptionError(f"`eval.patience` needs validation data: {files.folder}/val.jsonl does not exist")
    lengths = [len(example) for example in examples]
    micro_batch_size = min(train.micro_batch_size, train.global_batch_size)
    plan = StepPlan(lengths, train.global_batch_size, micro_batch_size, max(lengths), train.packing, args.seed)
    epoch = first_epoch(plan, args.devices * args.num_nodes)
    assert args.prompt_style is not None
    found = inspect(examples, val_examples, kept, args.prompt_style, tokenizer, plan, epoch)
    identity = {"n_examples": found.n_examples, "digest": found.digest, "validation": found.val_digest}
    val_lengths = [len(example) for example in val_examples]
    groups = pack(range(len(val_lengths)), val_lengths, train.micro_batch_size, max(val_lengths, default=0), train.packing)
    return RunData(examples, plan, epoch, list(batches(groups, val_examples)), identity), found


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
