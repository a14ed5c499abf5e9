"""Raw sources into a data folder: `train.jsonl`, `val.jsonl` and `meta.json`."""

import contextlib
import dataclasses
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lit_llm.args.data import PrepareArgs, PrepareCsvArgs, PrepareJsonArgs
from lit_llm.data.curate import Curation, share
from lit_llm.data.file_readers import csv_columns, rows_of
from lit_llm.data.records import Record
from lit_llm.data.rows import to_record
from lit_llm.data.token_cache import token_counts
from lit_llm.files import check_replaceable, digest_of, new_folder, read_json_object, write_json
from lit_llm.progress import Progress
from lit_llm.text.tokenizer import Tokenizer

COLUMNS = {name: name for name in ("instruction", "input", "output", "system")}


def prepare(args: PrepareArgs, source: str, path: Path, rows: Iterable[Any], to_record: Callable[[Any], Record]) -> None:
    """Write the data folder, and say what was kept and what was dropped, and why. Rows are read as a stream.

    Args:
        source: Where the data comes from, for `meta.json`.
        path: The file that was read.
        to_record: The record of a row; raises ValueError with the reason why it has none.

    Raises:
        ValueError: if no row is left.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    destination = args.destination_path
    check_replaceable(destination, "--destination_path")
    if destination.is_dir() and any(destination.iterdir()) and not (destination / "meta.json").is_file():
        raise ValueError(f"{destination} holds files that are not a data folder. Choose another --destination_path")
    checksum = digest_of(path, "0" * 64)
    options = {k: v for k, v in dataclasses.asdict(args).items() if k not in ("checkpoint_dir", "destination_path")}
    options = json.loads(json.dumps(options, default=str))
    meta = read_json_object(destination / "meta.json") if (destination / "meta.json").is_file() else {}
    files = meta.get("files", {})
    is_same = (meta.get("sha256"), meta.get("options")) == (checksum, options)
    if is_same and files and all(_is_as_written(destination / name, files) for name in files):
        print(f"{destination} is up to date: it was made from the same file with the same options")
    else:
        if by_hand := [file.name for file in _contents(destination) if not _is_as_written(file, files)]:
            raise ValueError(
                f"{destination} holds what was written or changed by hand, and would be lost: {', '.join(by_hand)}. Train on "
                f"it as it is (--data_dir {destination}), remove it, or prepare into another folder (--destination_path of the "
                "prepare scripts)"
            )
        _write(args, source, path, checksum, options, rows, to_record)
        if meta:
            why = "a file was missing" if is_same else f"made from another file ({meta.get('source')}) or with other options"
            print(f"{destination} replaces the folder that was there: {why}", file=sys.stderr)
    if args.checkpoint_dir is not None:
        print(token_counts(destination / "train.jsonl", Tokenizer(args.checkpoint_dir)))
    print(f"Finetune: python finetune/lora.py --data_dir {destination} --checkpoint_dir checkpoints/ORG/NAME", file=sys.stderr)


def _write(
    args: PrepareArgs,
    source: str,
    path: Path,
    checksum: str,
    options: dict[str, Any],
    rows: Iterable[Any],
    to_record: Callable[[Any], Record],
) -> None:
    curation = Curation(args.near_duplicates, args.min_answer_chars, args.max_chars, args.max_examples)
    kept, dropped = Counter(train=0, val=0), Counter[str]()
    progress = Progress("row", None)
    with new_folder(args.destination_path) as folder, contextlib.ExitStack() as stack:
        names = ["train", "val", *(["dropped"] if args.write_dropped else [])]
        files = {name: stack.enter_context((folder / f"{name}.jsonl").open("w", encoding="utf-8")) for name in names}
        for row in rows:
            progress.update()
            try:
                record = to_record(row)
                reason = curation.reason(record)
                line = json.dumps(record, ensure_ascii=False)
                line.encode()
            except UnicodeEncodeError:
                reason = "half of a surrogate pair, which is no text"
            except ValueError as error:
                reason = str(error).split("; found")[0].split(", found")[0]
            if reason is None:
                split = "val" if share(record, args.seed) < args.val_split_fraction else "train"
                kept[split] += 1
                files[split].write(f"{line}\n")
            else:
                dropped[reason] += 1
                if args.write_dropped:
                    files["dropped"].write(json.dumps({"reason": reason, "row": row}, default=str) + "\n")
        progress.close()
        if not kept["train"]:
            reasons = ", ".join(f"{reason} ({n})" for reason, n in dropped.items()) or "it has no rows"
            raise ValueError(f"{path}: nothing to train on is left: {reasons}")
        stack.close()
        for name in [name for name in names if not (folder / f"{name}.jsonl").stat().st_size]:
            (folder / f"{name}.jsonl").unlink()
        meta = {
            "source": source,
            "sha256": checksum,
            "rows": dict(kept),
            "dropped": dict(dropped),
            "val_split_fraction": args.val_split_fraction,
            "seed": args.seed,
            "options": options,
            "files": {file.name: digest_of(file, "0" * 64) for file in sorted(folder.iterdir())},
        }
        write_json(folder / "meta.json", meta)
    print(f"{args.destination_path}: {kept['train']} rows to train on, {kept['val']} to validate")
    for reason, n in dropped.items():
        print(f"dropped {n}: {reason}")


def _contents(folder: Path) -> list[Path]:
    """Files of a data folder, but for what can be made again: the caches of tokens, what a killed program left of them, and
    what file managers keep."""
    made = re.compile(r"meta\.json|(train|val)-tokens-\w+\.safetensors|\.(train|val)-\w+|\.DS_Store")
    return [file for file in sorted(folder.glob("*")) if not made.fullmatch(file.name)]


def _is_as_written(file: Path, digests: dict[str, str]) -> bool:
    return file.is_file() and digest_of(file, "0" * 64) == digests.get(file.name)


def prepare_table(args: PrepareCsvArgs | PrepareJsonArgs, source: str, path: Path) -> None:
    """Prepare a file of rows in which columns have the names that the options give them."""
    columns = {name: getattr(args, f"{name}_column") for name in COLUMNS}
    if path.suffix == ".csv" or isinstance(args, PrepareCsvArgs):
        found = csv_columns(path)
        wanted = [columns[name] for name in ("instruction", "output")]
        if (lacking := [name for name in wanted if name not in found]) and "text" not in found and "chosen" not in found:
            raise ValueError(
                f"{path}: the columns {', '.join(lacking)} are missing; found {', '.join(found) or 'none'}. Is the delimiter a "
                f"comma? Tell other names: python scripts/prepare_csv.py --csv_path {path} --instruction_column NAME "
                "--output_column NAME"
            )
    prepare(args, source, path, rows_of(path), lambda row: to_record(row, columns))


def prepared(path: Path) -> Path:
    """The data folder of a file of rows, which is made unless it is there and up to date.

    Raises:
        ValueError: if the file is plain text, or cannot be prepared.
    """
    if path.suffix in (".txt", ".md"):
        raise ValueError(f"{path} is plain text. Prepare it first: python scripts/prepare_text.py --text_path {path}")
    folder = Path("data") / f"{path.stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if path.suffix == ".csv":
        prepare_table(PrepareCsvArgs(csv_path=path, destination_path=folder), str(path), path)
    else:
        prepare_table(PrepareJsonArgs(json_path=str(path), destination_path=folder), str(path), path)
    return folder
