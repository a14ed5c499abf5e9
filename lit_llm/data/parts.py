"""Prepare the parts of a source: in this process, or in several ones that keep finished parts in files."""

import json
import multiprocessing
import os
import shutil
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_llm.data.curate import Checks, digest, share
from lit_llm.data.rows import to_record
from lit_llm.data.sources import Part
from lit_llm.errors import LitError
from lit_llm.files import json_text, write_whole

VERSION = 1  # of the files of parts; another number makes an interrupted preparation start again


@dataclass(frozen=True)
class Task:
    """Preparation of a part. Equal tasks have equal results in every process."""

    part: Part
    val_split_fraction: float
    columns: Mapping[str, str]
    checks: Checks
    seed: int
    write_dropped: bool

    def entries(self) -> Iterator[list[str]]:
        """Yield an entry of strings without tabs and line ends for each row, and one more at the end.

        They are `keep`, the file that the row belongs to, whether it is a pair, its digest, its signature, its record and the
        row; `drop`, the reason and the row; and at the end `tally` and what has been counted.
        """
        ignored, files = Counter[str](), dict[str, dict[str, Any]]()
        for name, rows in self.part.files():
            count = files.setdefault(name, {"rows": 0, "unusable": 0, "reason": ""})
            for row in rows:
                count["rows"] += 1
                reason = None
                try:
                    record = to_record(row, self.columns, ignored)
                    reason = self.checks.reason(record)
                except ValueError as error:
                    reason = str(error).split("; found")[0].split(", found")[0]  # without values: equal reasons are counted
                raw = json_text(row, ensure_ascii=True, default=str) if self.write_dropped else ""
                if reason is None:
                    split = "val" if share(record, self.seed) < self.val_split_fraction else "train"
                    line, pair = json.dumps(record, ensure_ascii=False), str(int("chosen" in record))
                    yield ["keep", split, pair, digest(record), self.checks.signature(record), line, raw]
                else:
                    count["unusable"] += 1
                    count["reason"] = count["reason"] or reason
                    yield ["drop", json.dumps(reason), raw]
        yield ["tally", json.dumps({"ignored": ignored, "files": files})]


def write_part(task: Task, path: Path) -> None:
    """Write the entries of a task to a file, which is complete when it has its name."""
    new = path.with_suffix(f".{uuid.uuid4().hex[:8]}")
    with new.open("w", encoding="utf-8", newline="\n") as file:
        for entry in task.entries():
            file.write("\t".join(entry) + "\n")
    new.replace(path)


def read_part(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.rstrip("\n").split("\t")


@contextmanager
def work_folder(target: Path, about: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the folder next to `target` for finished parts; it is removed unless the work is interrupted.

    Args:
        about: Everything that the parts depend on. Those of other work are removed.
    """
    folder = _work_folder(target)
    key = json_text({"version": VERSION, **about}, sort_keys=True)
    if not ((folder / "about.json").is_file() and (folder / "about.json").read_text() == key):
        forget_parts(target)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "about.json", key)
    try:
        yield folder
    except LitError:  # wrong input: the parts would not be used again
        forget_parts(target)
        raise
    forget_parts(target)


def forget_parts(target: Path) -> None:
    """Remove the parts of an interrupted preparation."""
    shutil.rmtree(_work_folder(target), ignore_errors=True)


def _work_folder(target: Path) -> Path:
    return target.resolve().with_name(f".parts-{target.resolve().name}")


def part_paths(tasks: Sequence[Task], folder: Path) -> tuple[list[Path], list[int]]:
    """Return the file of each part, and the numbers of those that are not finished."""
    paths = [folder / f"{number:06}.part" for number in range(len(tasks))]
    return paths, [number for number, path in enumerate(paths) if not path.is_file()]


def finished_parts(tasks: Sequence[Task], folder: Path, workers: int) -> Generator[Path]:
    """Yield the file of each part in order, as soon as it is finished. Those that the folder has already are kept."""
    paths, missing = part_paths(tasks, folder)
    if min(workers, len(missing)) < 2:
        for task, path in zip(tasks, paths, strict=True):
            if not path.is_file():
                write_part(task, path)
            yield path
        return
    context = multiprocessing.get_context("spawn")  # a copy of a process with threads may hang
    pool = ProcessPoolExecutor(min(workers, len(missing)), context, _start_worker)
    try:
        running = {number: pool.submit(write_part, tasks[number], paths[number]) for number in missing}
        for number, path in enumerate(paths):
            if number in running:
                running[number].result()
            yield path
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process that prepares rows was killed, perhaps for its memory. Run the command again: it resumes, and "
            "fewer `workers` need less memory"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the main process, which lets running parts finish
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process as soon as the main one is killed: its pipe would not close."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
