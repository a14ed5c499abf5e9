"""The files that a path, pattern, folder or address names."""

import glob
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lit_llm.data.streams import format_of
from lit_llm.data.table_files import ARROW
from lit_llm.download.remote import fetched, is_address, listed
from lit_llm.errors import DataError

ROWS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", *ARROW)
TEXTS = (".txt", ".md")
_SERIES = re.compile(r"(.*)-(\d+)-of-(\d+)\b.*")
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "README.md")
"""Files that describe the others, as `datasets` writes them."""
_SPLITS = {name: name for name in ("train", "test", "val", "dropped")} | dict.fromkeys(("valid", "validation", "dev"), "val")


def files_of(source: str, suffixes: Sequence[str] = ROWS) -> list[Path]:
    """Return the files that `source` names, in sorted order; those of an address are fetched first.

    Args:
        source: A path, a folder, a pattern such as `shards/*.parquet`, or an address of one of them.
        suffixes: Files of a folder to read; those of compressed ones are found, too.

    Raises:
        FileNotFoundError: if a file does not exist.
        DataError: if there is none, if a shard is missing, or if a folder holds files that do not belong together.
    """
    if is_address(source):
        names, present = listed(source)
        return [fetched(name) for name in _chosen(source, names, present, suffixes)]
    path = Path(source)
    if path.is_dir():
        names = [str(file) for file in path.iterdir() if file.is_file()]
    elif not path.exists() and glob.has_magic(source):
        names = [name for name in glob.glob(source, recursive=True) if Path(name).is_file()]
    else:
        return [path]
    present = [str(file) for folder in {Path(name).parent for name in names} for file in folder.iterdir()]
    return [Path(name) for name in _chosen(source, names, present, suffixes)]


def _chosen(source: str, names: Iterable[str], present: Iterable[str], suffixes: Sequence[str]) -> list[str]:
    """Return the names to read, checked and sorted. `present` lists all files of their folders."""
    is_pattern = glob.has_magic(source)
    found = sorted(name for name in names if not Path(name).name.startswith("."))
    if not is_pattern and len(found) > 1:
        found = [name for name in found if format_of(Path(name)) in suffixes and Path(name).name not in _ABOUT]
    if not found:
        raise DataError(f"{source} names no files ({', '.join(suffixes)}). Specify a file, a folder, or a pattern in quotes")
    if not is_pattern:
        _check_one_kind(source, found, lambda name: format_of(Path(name)), "formats")
        _check_one_kind(source, found, _split_of, "splits")
    check_series(found, present)
    return found


def _check_one_kind(source: str, names: list[str], kind: Callable[[str], str], what: str) -> None:
    counts = Counter(map(kind, names))
    if len(counts) > 1:
        kinds = ", ".join(f"{name or 'others'} ({n})" for name, n in counts.items())
        raise DataError(f"{source} holds files of several {what}: {kinds}. Name those to read by a pattern: '{source}/...*'")


def _split_of(name: str) -> str:
    """Return the split of a dataset that a file's name begins with, or an empty string."""
    return _SPLITS.get(re.split(r"[^a-z]", Path(name).name.lower())[0], "")


def check_series(names: Iterable[str], present: Iterable[str]) -> None:
    """Raise DataError if a number is missing in names such as `train-00001-of-00005.parquet`, which count from 0 or from 1.

    Args:
        present: All names in the folders of `names`; a pattern may leave some of them unread.
    """
    numbers: dict[tuple[str, str, str], set[int]] = {}
    for series, number in filter(None, map(_numbered, present)):
        numbers.setdefault(series, set()).add(number)
    for series in dict.fromkeys(found[0] for found in map(_numbered, names) if found):
        (start, total, _), found = series, numbers.get(series, set())
        if not found:  # a single file was named
            continue
        first = 1 if int(total) in found else 0
        missing = next((i for i in range(first, first + min(int(total), 10**6)) if i not in found), None)
        if missing is not None:
            raise DataError(
                f"{start}-{missing:0{len(total)}}-of-{total} is missing: there are {len(found)} of {int(total)} shards. "
                "Download it; if the others are all that you want, rename them"
            )


def _numbered(name: str) -> tuple[tuple[str, str, str], int] | None:
    """Return what the names of a series have in common, and the number in this one."""
    match = _SERIES.fullmatch(name)
    return match and ((match[1], match[3], format_of(Path(name))), int(match[2]))
