"""Options of the prepare scripts and of inspect_data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from lit_llm.args.base import Checked, Rules, as_path, bounds, template_rules


@dataclass(frozen=True)
class PrepareArgs(Checked):
    """Preparation of a data folder"""

    source: ClassVar[str] = "data_file"
    """Option that names the files, by path or address."""

    destination_path: Path = Path("data")
    """Folder to write train.jsonl, val.jsonl and meta.json into."""
    val_split_fraction: float = 0.05
    """Share of the rows that are held out for validation."""
    seed: int = 42
    """Seed of the split."""
    checkpoint_dir: Path | None = None
    """Folder of a model, whose tokenizer counts the tokens of the examples."""
    near_duplicates: float | None = None
    """Drop a row that is this similar to an earlier one (Jaccard similarity of word trigrams), e.g. 0.8."""
    contamination: str | None = None
    """File, folder or pattern of an evaluation: drop a row that shares 8 to 13 words in a row with one of its texts."""
    min_answer_chars: int = 1
    """Drop a row with a shorter answer."""
    max_chars: int | None = None
    """Drop a row with more characters in all its fields."""
    max_examples: int | None = None
    """Keep at most this many rows, the first that pass."""
    write_dropped: bool = False
    """Write the dropped rows, each with its reason, to dropped.jsonl."""
    workers: int | None = None
    """Number of processes that prepare the parts of large files. The result is the same. Default: one for each CPU core."""
    ray: str | None = None
    """Address of a Ray cluster, or auto, that prepares the parts. Its nodes must see the same files under the same names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "://" not in (name := str(getattr(self, self.source, ""))):
            as_path(self.source, name)

    def rules(self) -> Rules:
        return [
            *bounds(self, "val_split_fraction", at_least=0, below=1),
            *bounds(self, "seed", at_least=0),
            *bounds(self, "min_answer_chars", "max_chars", "max_examples", "workers", above=0),
            *bounds(self, "near_duplicates", at_least=0.3, at_most=1),
            *self.excludes("ray", "workers"),
        ]


@dataclass(frozen=True)
class ColumnArgs(PrepareArgs):
    instruction_column: str = "instruction"
    """Column of the instruction."""
    input_column: str = "input"
    """Column of further input; optional."""
    output_column: str = "output"
    """Column of the answer."""
    system_column: str = "system"
    """Column of a system prompt; optional."""

    def rules(self) -> Rules:
        columns = [self.instruction_column, self.input_column, self.output_column, self.system_column]
        twice = next((column for i, column in enumerate(columns) if column in columns[:i]), None)
        return [
            *super().rules(),
            (
                twice is not None,
                f"the column {twice!r} has two roles. Name another with `instruction_column`, `input_column`, "
                "`output_column` or `system_column`",
            ),
        ]


@dataclass(frozen=True)
class PrepareAlpacaArgs(PrepareArgs):
    data_file: str = "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/alpaca_data.json"
    """JSON list of rows with instruction, input and output: a file, folder, pattern or address."""
    destination_path: Path = Path("data/alpaca")


@dataclass(frozen=True)
class PrepareCsvArgs(ColumnArgs):
    source: ClassVar[str] = "csv_path"

    csv_path: str = field(kw_only=True)
    """CSV with a header row and at least the columns instruction and output: a file, a folder, a pattern or an address."""
    destination_path: Path = Path("data/csv")


@dataclass(frozen=True)
class PrepareJsonArgs(ColumnArgs):
    source: ClassVar[str] = "json_path"

    json_path: str = field(kw_only=True)
    """JSON list, JSON lines, parquet or Arrow: instruction rows, chats (messages, ShareGPT's conversations), preference pairs
    (prompt, chosen, rejected) or plain text. A file, a folder of shards, a pattern such as 'shards/*.parquet', a URL,
    hf://datasets/ORG/NAME/FILE, or an address of another store, as s3://."""
    destination_path: Path = Path("data/json")


@dataclass(frozen=True)
class PrepareHfArgs(ColumnArgs):
    source: ClassVar[str] = "dataset"

    dataset: str = field(kw_only=True)
    """Dataset of the hub, as ORG/NAME, or a folder of that layout. Set HF_TOKEN for a private or gated one."""
    config_name: str | None = None
    """Configuration (subset) of the dataset, if it has several."""
    split: str = "train"
    """Split to read."""
    val_split: str | None = None
    """Split that becomes val.jsonl. Default: rows of `split` are held out."""
    revision: str | None = None
    """Branch, tag or commit. Default: main."""
    columns: list[str] = field(default_factory=list)
    """Column to read; repeat the flag for several. Default: all."""
    destination_path: Path = Path("data/hf")

    def rules(self) -> Rules:
        return [*super().rules(), *self.excludes("val_split", "val_split_fraction")]


@dataclass(frozen=True)
class PrepareDollyArgs(PrepareArgs):
    data_file: str = "hf://datasets/databricks/databricks-dolly-15k/databricks-dolly-15k.jsonl"
    """JSON lines with instruction, context and response: a file, folder, pattern or address."""
    destination_path: Path = Path("data/dolly")


@dataclass(frozen=True)
class PrepareLimaArgs(PrepareArgs):
    data_file: str = "hf://datasets/GAIR/lima/train.jsonl"
    """JSON lines with conversations: a file, folder, pattern or address. Accept the terms on the
    hub first, and set HF_TOKEN to the token of the account."""
    destination_path: Path = Path("data/lima")
    include_multiturn_conversations: bool = False
    """Keep all turns of a conversation instead of its first exchange only."""


@dataclass(frozen=True)
class PrepareTextArgs(PrepareArgs):
    source: ClassVar[str] = "text_path"

    text_path: str = field(kw_only=True)
    """Text: a file, a folder or a pattern, where each file is a document; a URL, or hf://datasets/ORG/NAME/FILE."""
    destination_path: Path = Path("data/text")
    separator: str | None = None
    """String between two documents, e.g. <|endoftext|>; without it each file is one document."""
    chunk_chars: int = 2000
    """Longest row in characters. Documents are split at the end of a paragraph, line or word; EOS follows the last row."""

    def rules(self) -> Rules:
        return [
            *super().rules(),
            *bounds(self, "chunk_chars", above=0),
            (self.separator == "", "`separator` must not be empty"),
        ]


@dataclass(frozen=True)
class ExampleArgs(Checked):
    """How records become examples"""

    checkpoint_dir: Path | None = None
    """Folder of the base model, as Hugging Face publishes it or converted. Without it and data_dir: the embedded demo."""
    data_dir: Path | None = None
    """Folder with train.jsonl and optionally val.jsonl, as the prepare scripts write it; or a .csv, .tsv, .json, .jsonl,
    .parquet or .arrow file, or a folder or pattern of them, which is prepared first. Several, each with or without a weight:
    a.jsonl:0.7,data/b."""
    prompt_style: str | None = None
    """Style that turns a record into a prompt. Default: the one that fits the checkpoint and the records."""
    template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template as a JSON object, e.g. {"enable_thinking": false}; those of a record are preferred."""
    mask_prompt: bool = True
    """Train on the answers only."""
    train_on: Literal["all", "last", "answers", "thoughts"] = "all"
    """Train on all answers of a conversation or on the last only, with their thoughts; or of all answers on what follows the
    thoughts, or on the thoughts only."""
    max_seq_length: int | None = None
    """Longest example in tokens; longer ones are dropped and counted. Default: the model's context."""

    def rules(self) -> Rules:
        in_part = self.train_on in ("answers", "thoughts")
        message = f"`train_on` {self.train_on} needs `mask_prompt` true, which trains answers only"
        return [*template_rules(self), *bounds(self, "max_seq_length", above=0), (in_part and not self.mask_prompt, message)]


@dataclass(frozen=True)
class InspectDataArgs(ExampleArgs):
    """Examples as finetuning reads them"""

    checkpoint_dir: Path = field(kw_only=True)
    """Folder of the model whose tokenizer and chat template are used."""
    data_dir: Path = field(kw_only=True)
    """Folder with train.jsonl; or a .csv, .tsv, .json, .jsonl, .parquet or .arrow file, which is prepared first."""
    num_examples: int = 3
    """Number of examples to show."""
    split: Literal["train", "val"] = "train"
    """Show train.jsonl or val.jsonl."""

    def rules(self) -> Rules:
        return [*super().rules(), *bounds(self, "num_examples", at_least=0)]
