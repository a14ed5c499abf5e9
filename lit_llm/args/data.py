"""Options of the prepare scripts and of inspect_data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from lit_llm.args.base import Checked


@dataclass(frozen=True)
class PrepareArgs(Checked):
    """Where the data is, and where it goes"""

    source: ClassVar[str] = "data_file"

    destination_path: Path = Path("data")
    """Folder to write train.jsonl, val.jsonl and meta.json into."""
    val_split_fraction: float = 0.05
    """Share of the rows that is held out for validation."""
    seed: int = 42
    """Seed of the split."""
    checkpoint_dir: Path | None = None
    """Folder of a model: its tokenizer counts the tokens of the examples."""
    near_duplicates: float | None = None
    """Drop a row that is this similar to an earlier one (Jaccard similarity of its words in threes, as in 0.8)."""
    min_answer_chars: int = 1
    """Drop a row with a shorter answer."""
    max_chars: int | None = None
    """Drop a longer row, counted in characters of all its texts."""
    max_examples: int | None = None
    """Keep at most so many rows, the first ones that pass."""
    write_dropped: bool = False
    """Write the dropped rows, each with its reason, to dropped.jsonl."""

    def rules(self) -> list[tuple[bool, str]]:
        return [
            (
                not 0 <= self.val_split_fraction < 1,
                f"`val_split_fraction` must be at least 0 and below 1, found {self.val_split_fraction}",
            ),
            *self.below(0, "seed", allow_equal=True),
            *self.below(0, "min_answer_chars", "max_chars", "max_examples"),
            (
                self.near_duplicates is not None and not 0.3 <= self.near_duplicates <= 1,
                f"`near_duplicates` must be at least 0.3 and at most 1, found {self.near_duplicates}",
            ),
        ]


@dataclass(frozen=True)
class ColumnArgs(PrepareArgs):
    """Where the data is, and where it goes"""

    instruction_column: str = "instruction"
    """Column that holds the instruction."""
    input_column: str = "input"
    """Column that holds its input; need not be there."""
    output_column: str = "output"
    """Column that holds the answer."""
    system_column: str = "system"
    """Column that holds a system text; need not be there."""

    def rules(self) -> list[tuple[bool, str]]:
        columns = [self.instruction_column, self.input_column, self.output_column, self.system_column]
        twice = next((column for i, column in enumerate(columns) if column in columns[:i]), None)
        return [
            *super().rules(),
            (
                twice is not None,
                f"the column {twice!r} cannot hold two things. Name another with `instruction_column`, `input_column`, "
                "`output_column` or `system_column`",
            ),
        ]


@dataclass(frozen=True)
class PrepareAlpacaArgs(PrepareArgs):
    """Where the data is, and where it goes"""

    data_file: str = "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/alpaca_data.json"
    """JSON list of rows with instruction, input and output: a path, an address, or hf://datasets/ORG/NAME/FILE."""
    destination_path: Path = Path("data/alpaca")
    """Folder to write train.jsonl, val.jsonl and meta.json into."""


@dataclass(frozen=True)
class PrepareCsvArgs(ColumnArgs):
    """Where the data is, and where it goes"""

    csv_path: Path = field(kw_only=True)
    """CSV file with a header row and at least the columns instruction and output."""
    destination_path: Path = Path("data/csv")
    """Folder to write train.jsonl, val.jsonl and meta.json into."""


@dataclass(frozen=True)
class PrepareJsonArgs(ColumnArgs):
    """Where the data is, and where it goes"""

    json_path: str = field(kw_only=True)
    """JSON list, JSON lines or parquet: instruction rows, chats (messages, ShareGPT's conversations), preference pairs
    (prompt, chosen, rejected) or texts. A path, an address, or hf://datasets/ORG/NAME/FILE."""
    destination_path: Path = Path("data/json")
    """Folder to write train.jsonl, val.jsonl and meta.json into."""


@dataclass(frozen=True)
class PrepareDollyArgs(PrepareArgs):
    """Where the data is, and where it goes"""

    data_file: str = "hf://datasets/databricks/databricks-dolly-15k/databricks-dolly-15k.jsonl"
    """JSON lines with instruction, context and response: a path, an address, or hf://datasets/ORG/NAME/FILE."""
    destination_path: Path = Path("data/dolly")
    """Folder to write train.jsonl, val.jsonl and meta.json into."""


@dataclass(frozen=True)
class PrepareLimaArgs(PrepareArgs):
    """Where the data is, and where it goes"""

    data_file: str = "hf://datasets/GAIR/lima/train.jsonl"
    """JSON lines with conversations: a path, an address, or hf://datasets/ORG/NAME/FILE. The hub wants the terms
    accepted, and the account's token in HF_TOKEN."""
    destination_path: Path = Path("data/lima")
    """Folder to write train.jsonl, val.jsonl and meta.json into."""
    include_multiturn_conversations: bool = False
    """Keep all turns of a conversation, not its first exchange only."""


@dataclass(frozen=True)
class PrepareTextArgs(PrepareArgs):
    """Where the data is, and where it goes"""

    text_path: str = field(kw_only=True)
    """Text file: a path, an address, or hf://datasets/ORG/NAME/FILE."""
    destination_path: Path = Path("data/text")
    """Folder to write train.jsonl, val.jsonl and meta.json into."""
    separator: str | None = None
    """What stands between two documents, as in <|endoftext|>; without it the file is one document."""
    chunk_chars: int = 2000
    """Documents are cut, where a paragraph, line or word ends, to rows of at most so many characters; EOS follows the last."""

    def rules(self) -> list[tuple[bool, str]]:
        return [*super().rules(), *self.below(0, "chunk_chars"), (self.separator == "", "`separator` must not be empty")]


@dataclass(frozen=True)
class InspectDataArgs(Checked):
    """What to look at"""

    checkpoint_dir: Path
    """Folder of the model whose tokenizer and chat template are used."""
    data_dir: Path
    """Folder with train.jsonl; or a csv, json, jsonl or parquet file, which is prepared on the way."""
    prompt_style: str | None = None
    """How a record becomes a prompt; the style that fits the checkpoint and the records if not given."""
    mask_prompt: bool = True
    """Train on the answers only."""
    train_on: Literal["all", "last"] = "all"
    """Answers of a conversation to train on: all of them, or the last."""
    max_seq_length: int | None = None
    """Longest example in tokens; longer ones are dropped and counted. The model's context if not given."""
    num_examples: int = 3
    """Examples that are shown."""
    split: Literal["train", "val"] = "train"
    """Which of the two files."""

    def rules(self) -> list[tuple[bool, str]]:
        return [*self.below(0, "max_seq_length"), *self.below(0, "num_examples", allow_equal=True)]
