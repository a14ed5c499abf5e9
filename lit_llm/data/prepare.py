"""Turn files of rows into a data folder: `train.jsonl`, `val.jsonl` and `meta.json`."""

import contextlib
import dataclasses
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_llm.args.data import PrepareArgs, PrepareCsvArgs, PrepareJsonArgs
from lit_llm.data.curate import Curation, share
from lit_llm.data.file_readers import csv_columns, csv_rows, is_csv, rows_of
from lit_llm.data.rows import COLUMNS, SHOWN, ignored_fields, shown_names, to_record
from lit_llm.data.token_cache import token_counts
from lit_llm.errors import DataError
from lit_llm.files import check_replaceable, claimed, digest_of, holds_files, new_folder, read_json_object, write_json
from lit_llm.progress import Progress
from lit_llm.text.tokenizer import Tokenizer


def prepare(
    args: PrepareArgs, source: str, path: Path, rows: Iterable[Any], columns: Mapping[str, str] = COLUMNS, wait: bool = False
) -> None:
    """Write the data folder, and print how many rows were kept and dropped, and why. Rows are read as a stream.

    Args:
        source: Origin of the data, for `meta.json`.
        path: The file that is read.
        columns: See `to_record`.
        wait: Wait for another process that writes the folder.

    Raises:
        DataError: if no row is left, or if the folder holds files that would be lost.
        OptionError: if another process writes the folder.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    destination = args.destination_path
    check_replaceable(destination, "destination_path")
    with claimed(destination, "destination_path", wait=wait):
        _update(args, source, path, rows, columns)
    if args.checkpoint_dir is not None:
        print(token_counts(destination / "train.jsonl", Tokenizer(args.checkpoint_dir)))
    print(f"Finetune: python finetune/lora.py --data_dir {destination} --checkpoint_dir checkpoints/ORG/NAME", file=sys.stderr)


def _update(args: PrepareArgs, source: str, path: Path, rows: Iterable[Any], columns: Mapping[str, str]) -> None:
    """Write the data folder unless it is up to date."""
    destination = args.destination_path
    if holds_files(destination) and not (destination / "meta.json").is_file():
        raise DataError(f"{destination} holds files that are not a data folder. Choose another `destination_path`")
    options = {k: v for k, v in dataclasses.asdict(args).items() if k not in ("checkpoint_dir", "destination_path")}
    options = json.loads(json.dumps(options, default=str))
    about = {"source": source, "sha256": digest_of(path, "0" * 64), "options": options}
    meta = read_json_object(destination / "meta.json") if (destination / "meta.json").is_file() else {}
    is_same = all(meta.get(name) == about[name] for name in ("sha256", "options"))
    files = meta.get("files", {})
    if is_same and files and all(_is_as_written(destination / name, files) for name in files):
        print(f"{destination} is up to date: it was made from the same file with the same options")
    else:
        _check_unchanged(destination, files)
        _write(args, path, about, rows, columns)
        if meta:
            why = "a file was missing" if is_same else f"made from another file ({meta.get('source')}) or with other options"
            print(f"{destination} replaces the existing folder: {why}", file=sys.stderr)


def _sorted(
    args: PrepareArgs, rows: Iterable[Any], columns: Mapping[str, str], ignored: Counter[str]
) -> Iterator[tuple[str, str, str | None]]:
    """Yield for each row the file that it belongs to, its line there, and the reason if it is dropped."""
    curation = Curation(args.near_duplicates, args.min_answer_chars, args.max_chars, args.max_examples)
    for row in rows:
        try:
            record = to_record(row, columns, ignored)
            reason = curation.reason(record)
        except ValueError as error:
            reason = str(error).split("; found")[0].split(", found")[0]  # without values, so that equal reasons are counted
        if reason is None:
            line = json.dumps(record, ensure_ascii=False)
            yield "val" if share(record, args.seed) < args.val_split_fraction else "train", line, None
        else:
            line = json.dumps({"reason": reason, "row": row}, default=str) if args.write_dropped else ""
            yield "dropped", line, reason


def _write(args: PrepareArgs, path: Path, about: dict[str, Any], rows: Iterable[Any], columns: Mapping[str, str]) -> None:
    kept, dropped, ignored = Counter(train=0, val=0), Counter[str](), Counter[str]()
    progress = Progress("row", None)
    with new_folder(args.destination_path) as folder:
        names = ["train", "val", *(["dropped"] if args.write_dropped else [])]
        paths = {name: folder / f"{name}.jsonl" for name in names}
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(paths[name].open("w", encoding="utf-8")) for name in names}
            for name, line, reason in _sorted(args, rows, columns, ignored):
                progress.update()
                if reason is None:
                    kept[name] += 1
                else:
                    dropped[reason] += 1
                if name in files:
                    files[name].write(f"{line}\n")
        progress.close()
        if not kept["train"] and kept["val"]:  # few questions: the split by question holds out all of them
            paths["val"].replace(paths["train"])
            paths["val"].touch()
            kept = Counter(train=kept["val"], val=0)
        if not kept["train"]:
            reasons = ", ".join(f"{reason} ({n})" for reason, n in dropped.most_common(SHOWN)) or "it has no rows"
            raise DataError(f"{path}: nothing to train on is left: {reasons}")
        for file in paths.values():
            if not file.stat().st_size:
                file.unlink()
        digests = {file.name: digest_of(file, "0" * 64) for file in sorted(folder.iterdir())}
        counts = {"rows": dict(kept), "dropped": dict(dropped), "ignored": dict(ignored)}
        split = {"val_split_fraction": args.val_split_fraction, "seed": args.seed}
        write_json(folder / "meta.json", {**about, **counts, **split, "files": digests})
    print(f"{args.destination_path}: {kept['train']} rows to train on, {kept['val']} to validate")
    for reason, n in dropped.items():
        print(f"dropped {n}: {reason}")
    if ignored:
        print(ignored_fields(ignored))


def _check_unchanged(folder: Path, digests: dict[str, str]) -> None:
    """Raise DataError for files that a user added or changed. Token caches and files of file managers do not count."""
    made = re.compile(r"meta\.json|(train|val)-tokens-\w+\.safetensors|\.(new|lock)-(train|val)-.+|\.DS_Store")
    contents = [file for file in sorted(folder.glob("*")) if not made.fullmatch(file.name)]
    if by_hand := [file.name for file in contents if not _is_as_written(file, digests)]:
        raise DataError(
            f"{folder} holds files that were written or changed by hand, and would be lost: {', '.join(by_hand)}. Train on it "
            f"as it is (--data_dir {folder}), remove it, or prepare into another folder (--destination_path of the prepare "
            "scripts)"
        )


def _is_as_written(file: Path, digests: dict[str, str]) -> bool:
    return file.is_file() and digest_of(file, "0" * 64) == digests.get(file.name)


def prepare_table(args: PrepareCsvArgs | PrepareJsonArgs, source: str, path: Path, wait: bool = False) -> None:
    """Prepare a file of rows whose columns have the names given as options."""
    columns = {name: getattr(args, f"{name}_column") for name in COLUMNS}
    from_csv = isinstance(args, PrepareCsvArgs) or is_csv(path)
    if from_csv:
        found = csv_columns(path)
        plain = {name.strip().lower() for name in found}
        missing = [columns[name] for name in ("instruction", "output") if columns[name].strip().lower() not in plain]
        if missing and plain.isdisjoint(("text", "chosen", "messages", "conversations")):
            raise DataError(
                f"{path}: the columns {', '.join(missing)} are missing; found {shown_names(found)}. Is the delimiter a "
                "comma, semicolon, tab or vertical bar? Name other columns: python scripts/prepare_csv.py --csv_path "
                f"{path} --instruction_column NAME --output_column NAME"
            )
    prepare(args, source, path, csv_rows(path) if from_csv else rows_of(path), columns, wait)


def prepared(path: Path) -> Path:
    """Return the data folder of a file of rows, which is made unless it exists and is up to date.

    Raises:
        DataError: if the file is plain text, or cannot be prepared.
    """
    if path.suffix.lower() in (".txt", ".md"):
        raise DataError(f"{path} is plain text. Prepare it first: python scripts/prepare_text.py --text_path {path}")
    folder = Path("data") / f"{path.stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if is_csv(path):
        prepare_table(PrepareCsvArgs(csv_path=path, destination_path=folder), str(path), path, wait=True)
    else:
        prepare_table(PrepareJsonArgs(json_path=str(path), destination_path=folder), str(path), path, wait=True)
    return folder
