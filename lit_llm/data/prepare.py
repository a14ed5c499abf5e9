"""Turn files of rows into a data folder: `train.jsonl`, `val.jsonl` and `meta.json`."""

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from lit_llm.args.data import PrepareArgs, PrepareCsvArgs, PrepareJsonArgs
from lit_llm.data.contamination import Evaluation, overlap_of
from lit_llm.data.curate import Checks, Selection
from lit_llm.data.file_readers import is_csv
from lit_llm.data.parts import Task, finished_parts, forget_parts, read_part, work_folder
from lit_llm.data.ray_parts import ray_parts
from lit_llm.data.rows import COLUMNS, SHOWN, ignored_fields
from lit_llm.data.shards import ROWS, TEXTS, files_of
from lit_llm.data.sources import Source, csv_files, digest_of_files, row_files
from lit_llm.data.streams import format_of, plain_name
from lit_llm.errors import DataError
from lit_llm.files import (
    check_replaceable,
    claimed,
    digest_of,
    holds_files,
    new_folder,
    read_json_object,
    write_json,
)
from lit_llm.progress import Progress


class Meta(TypedDict, total=False):
    """Contents of `meta.json` that are read again."""

    source: str
    sha256: str
    options: dict[str, Any]
    files: dict[str, str]


NOT_OPTIONS = ("checkpoint_dir", "destination_path", "workers", "ray")
"""Options that do not change the result."""


def prepare(args: PrepareArgs, source: Source, wait: bool = False) -> None:
    """Write the data folder, and print how many rows were kept and dropped, and why. Rows are read as a stream.

    Args:
        wait: Wait for another process that writes the folder.

    Raises:
        DataError: if no row is left, or if the folder holds files that would be lost.
        OptionError: if another process writes the folder.
    """
    destination = args.destination_path
    check_replaceable(destination, "destination_path")
    with claimed(destination, "destination_path", wait=wait):
        _update(args, source)
    if args.checkpoint_dir is not None:
        from lit_llm.data.token_cache import token_counts  # imports torch, which preparation does not need
        from lit_llm.text.tokenizer import Tokenizer

        print(token_counts(destination / "train.jsonl", Tokenizer(args.checkpoint_dir)))
    print(f"Finetune: python finetune/lora.py --data_dir {destination} --checkpoint_dir checkpoints/ORG/NAME", file=sys.stderr)


def _update(args: PrepareArgs, source: Source) -> None:
    """Write the data folder unless it is up to date."""
    destination = args.destination_path
    if holds_files(destination) and not (destination / "meta.json").is_file():
        raise DataError(f"{destination} holds files that are not a data folder. Choose another `destination_path`")
    options = {k: v for k, v in dataclasses.asdict(args).items() if k not in NOT_OPTIONS}
    options = json.loads(json.dumps(options, default=str))
    evaluation = _evaluation(args)
    if evaluation is not None:
        options["contamination_sha256"] = evaluation.sha256
    about = {"source": source.name, "sha256": source.sha256, "options": options}
    path_of_meta, advice = destination / "meta.json", "Choose another `destination_path`, or remove the folder"
    meta = read_json_object(path_of_meta, Meta, advice, DataError) if path_of_meta.is_file() else Meta()
    is_same = all(meta.get(name) == about[name] for name in ("sha256", "options"))
    files = meta.get("files", {})
    if is_same and files and all(_is_as_written(destination / name, files) for name in files):
        forget_parts(destination)
        print(f"{destination} is up to date: it was made from the same file with the same options")
    else:
        _check_unchanged(destination, files)
        with _entries(args, source, about, evaluation) as entries:
            _write(args, source, about, entries)
        if meta:
            why = "a file was missing" if is_same else f"made from another file ({meta.get('source')}) or with other options"
            print(f"{destination} replaces the existing folder: {why}", file=sys.stderr)


@contextlib.contextmanager
def _entries(
    args: PrepareArgs, source: Source, about: dict[str, Any], evaluation: Evaluation | None
) -> Iterator[Iterator[list[str]]]:
    """Yield the entries of all rows; see `Task.entries`. Those of several parts are made by several processes."""
    checks = Checks(args.min_answer_chars, args.max_chars, args.near_duplicates, evaluation)
    options = (source.columns, checks, args.seed, args.write_dropped)
    tasks = [Task(part, 0.0 if source.held_out else args.val_split_fraction, *options) for part in source.parts]
    tasks += [Task(part, 1.0, *options) for part in source.held_out]
    if len(tasks) == 1:
        forget_parts(args.destination_path)
        yield tasks[0].entries()
        return
    with (
        work_folder(args.destination_path, about) as folder,
        contextlib.closing(_parts(args, tasks, folder)) as paths,
    ):
        yield (entry for path in paths for entry in read_part(path))


def _parts(args: PrepareArgs, tasks: Sequence[Task], folder: Path) -> Generator[Path]:
    if args.ray is not None:
        return ray_parts(tasks, folder, args.ray)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)  # not on a Mac
    return finished_parts(tasks, folder, args.workers or len(allowed))


def _evaluation(args: PrepareArgs) -> Evaluation | None:
    """Return the evaluation whose texts must not be in the data, after its files were read once."""
    if args.contamination is None:
        return None
    files = files_of(args.contamination, (*ROWS, *TEXTS))
    evaluation = Evaluation(tuple(files), digest_of_files(files))
    found = overlap_of(evaluation)
    print(
        f"contamination: {found.n_texts:,} texts of {args.contamination} are compared, {found.n_words} words at a time; "
        f"shorter ones, which are not: {found.n_short:,}",
        file=sys.stderr,
    )
    return evaluation


class _Outcome:
    """Decisions about all rows of a source, and their counts."""

    def __init__(self, args: PrepareArgs) -> None:
        self._selection = Selection(args.near_duplicates, args.max_examples)
        self.kept, self.dropped, self.ignored = Counter(train=0, val=0), Counter[str](), Counter[str]()
        self.files: dict[str, dict[str, Any]] = {}

    def lines(self, entries: Iterator[list[str]]) -> Iterator[tuple[str, str]]:
        """Yield for each row the name of a file, and its line there."""
        for kind, *entry in entries:
            if kind == "keep":
                split, is_pair, digest, signature, line, row = entry
                reason = self._selection.reason(is_pair == "1", digest, signature)
                if reason is None:
                    self.kept[split] += 1
                    yield split, line
                    continue
            elif kind == "drop":
                reason, row = json.loads(entry[0]), entry[1]
            else:
                self._add(json.loads(entry[0]))
                continue
            self.dropped[reason] += 1
            yield "dropped", f'{{"reason": {json.dumps(reason)}, "row": {row}}}'

    def _add(self, tally: dict[str, Any]) -> None:
        self.ignored.update(tally["ignored"])
        for name, count in tally["files"].items():
            total = self.files.setdefault(name, {"rows": 0, "unusable": 0, "reason": ""})
            total.update(
                rows=total["rows"] + count["rows"],
                unusable=total["unusable"] + count["unusable"],
                reason=total["reason"] or count["reason"],
            )

    def print(self, destination: Path) -> None:
        print(f"{destination}: {self.kept['train']} rows to train on, {self.kept['val']} to validate")
        for reason, n in self.dropped.items():
            print(f"dropped {n}: {reason}")
        if self.ignored:
            print(ignored_fields(self.ignored))
        for name, count in self.files.items() if len(self.files) > 1 else ():
            if count["rows"] and count["rows"] == count["unusable"]:
                print(f"warning: none of the {count['rows']} rows of {name} is used: {count['reason']}", file=sys.stderr)


def _write(args: PrepareArgs, source: Source, about: dict[str, Any], entries: Iterator[list[str]]) -> None:
    outcome, progress = _Outcome(args), Progress("row", None)
    with new_folder(args.destination_path) as folder:
        names = ["train", "val", *(["dropped"] if args.write_dropped else [])]
        paths = {name: folder / f"{name}.jsonl" for name in names}
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(paths[name].open("w", encoding="utf-8")) for name in names}
            for name, line in outcome.lines(entries):
                progress.update()
                if name in files:
                    files[name].write(f"{line}\n")
        progress.close()
        kept, dropped = outcome.kept, outcome.dropped
        if not kept["train"] and kept["val"] and not source.held_out:
            # Few questions: the split by question holds out all of them.
            paths["val"].replace(paths["train"])
            paths["val"].touch()
            kept.update(train=kept["val"], val=-kept["val"])
        if not kept["train"]:
            reasons = ", ".join(f"{reason} ({n})" for reason, n in dropped.most_common(SHOWN)) or "it has no rows"
            raise DataError(f"{source.name}: nothing to train on is left: {reasons}")
        for file in paths.values():
            if not file.stat().st_size:
                file.unlink()
        digests = {file.name: digest_of(file, "0" * 64) for file in sorted(folder.iterdir())}
        counts = {"rows": dict(kept), "dropped": dict(dropped), "ignored": dict(sorted(outcome.ignored.items()))}
        split = {"val_split_fraction": args.val_split_fraction, "seed": args.seed}
        write_json(folder / "meta.json", {**about, **counts, **split, "files": digests})
    outcome.print(args.destination_path)


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


def prepare_table(args: PrepareCsvArgs | PrepareJsonArgs, wait: bool = False) -> None:
    """Prepare files of rows whose columns have the names given as options."""
    columns = {name: getattr(args, f"{name}_column") for name in COLUMNS}
    from_csv = isinstance(args, PrepareCsvArgs)
    name = args.csv_path if from_csv else args.json_path
    prepare(args, csv_files(name, columns) if from_csv else row_files(name, columns), wait)


_NO_ROWS = frozenset(("train.jsonl", "val.jsonl", "meta.json", "config.json"))
"""Files of data folders and checkpoints."""


def names_rows(path: Path) -> bool:
    """Return True for a file, pattern or folder of rows, and False for a data folder."""
    if path.is_dir():
        names = [file.name for file in path.iterdir()]
        return not {"train.jsonl", "val.jsonl", "meta.json", "config.json"} & {*names} and any(
            format_of(Path(name)) in ROWS for name in names
        )
    return path.is_file() or (glob.has_magic(str(path)) and not path.exists())


def data_folder(path: Path) -> Path:
    """Return a data folder: `path`, or the one made from the rows that it names."""
    return prepared(path) if names_rows(path) else path


def prepared(path: Path) -> Path:
    """Return the data folder of rows, which is made unless it exists and is up to date; see `files_of`.

    Raises:
        DataError: if the file is plain text, or cannot be prepared.
    """
    if format_of(path) in (".txt", ".md"):
        raise DataError(f"{path} is plain text. Prepare it first: python scripts/prepare_text.py --text_path {path}")
    name = path.parent.resolve().name if glob.has_magic(path.name) else Path(plain_name(path)).stem
    folder = Path("data") / f"{name}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if is_csv(path):
        prepare_table(PrepareCsvArgs(csv_path=str(path), destination_path=folder), wait=True)
    else:
        prepare_table(PrepareJsonArgs(json_path=str(path), destination_path=folder), wait=True)
    return folder
