"""Raw sources into a data folder: `train.jsonl`, `val.jsonl` and `meta.json`."""

import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lit_llm.args import PrepareArgs
from lit_llm.data import check_record, tokenize
from lit_llm.files import new_folder, write_json
from lit_llm.tokenizer import Tokenizer

Row = dict[str, Any]


def prepare(args: PrepareArgs, source: str, path: Path, rows: Iterable[Row]) -> None:
    """Write the data folder, and say what was kept and what was dropped, and why.

    Args:
        source: Where the data comes from, for `meta.json`.
        path: The file that was read.
        rows: Instruction rows; incomplete ones are dropped and counted by reason.

    Raises:
        ValueError: if no row is left.
    """
    kept: dict[str, list[Row]] = {"train": [], "val": []}
    dropped: Counter[str] = Counter()
    for row in rows:
        try:
            check_record(row)
        except ValueError as error:
            dropped[str(error).split(";")[0]] += 1
            continue
        record = {name: row.get(name) or "" for name in ("instruction", "input", "output")}
        kept["val" if _share(record, args.seed) < args.val_split_fraction else "train"].append(record)
    if not kept["train"]:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in dropped.items()) or "it has no rows"
        raise ValueError(f"{path}: nothing to train on is left: {reasons}")
    destination = args.destination_path
    if destination.is_dir() and any(destination.iterdir()) and not (destination / "meta.json").is_file():
        raise ValueError(f"{destination} holds files that are not a data folder. Choose another --destination_path")
    with new_folder(destination) as folder:
        for split, records in kept.items():
            if records:
                _write_jsonl(folder / f"{split}.jsonl", records)
        meta = {
            "source": source,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "rows": {split: len(records) for split, records in kept.items()},
            "dropped": dict(dropped),
            "val_split_fraction": args.val_split_fraction,
            "seed": args.seed,
        }
        write_json(folder / "meta.json", meta)
    print(f"{destination}: {len(kept['train'])} rows to train on, {len(kept['val'])} to validate")
    for reason, n in dropped.items():
        print(f"dropped {n}: {reason}")
    if args.checkpoint_dir is not None:
        _count_tokens(kept["train"], args.checkpoint_dir)
    print(f"Finetune: python finetune/lora.py --data_dir {destination} --checkpoint_dir checkpoints/ORG/NAME", file=sys.stderr)


def _share(record: Row, seed: int) -> float:
    """A number in [0, 1) from the content alone, so that appending rows moves none to the other split."""
    text = json.dumps([seed, record["instruction"], record["input"], record["output"]])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _write_jsonl(path: Path, records: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _count_tokens(records: Iterable[Row], checkpoint_dir: Path) -> None:
    tokenizer = Tokenizer(checkpoint_dir)
    lengths = sorted(len(tokenize(record, "alpaca", tokenizer, True)) for record in records)
    print(f"tokens per example: median {lengths[len(lengths) // 2]}, longest {lengths[-1]}, in all {sum(lengths)}")


def json_rows(path: Path) -> Iterator[Row]:
    """Rows of a JSON list, or of JSON lines.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with the line and column, for what is not JSON or not UTF-8.
    """
    text = _read_text(path)
    if text.lstrip().startswith("["):
        yield from _parse_json(path, text, 1)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _parse_json(path, line, number)


def _parse_json(path: Path, text: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{path}:{line}:{error.colno}: not JSON ({error.msg})") from error


def csv_rows(path: Path) -> Iterator[Row]:
    """Rows of a CSV file with a header. Raises ValueError if the columns instruction and output are not among them."""
    reader = csv.DictReader(_read_text(path).splitlines(keepends=True))
    columns = reader.fieldnames or []
    if lacking := [name for name in ("instruction", "output") if name not in columns]:
        found = ", ".join(columns) or "none"
        raise ValueError(f"{path}: the columns {', '.join(lacking)} are missing; found {found}. Is the delimiter a comma?")
    yield from reader


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8") from error
