"""Files and folders that are complete as soon as they have their final name."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lit_llm.errors import CheckpointError, LitError, OptionError
from lit_llm.schema import conform

T = TypeVar("T")


LOCK = ".lock"
"""File that the process which writes a folder keeps locked: in it, or with its name appended next to what will be replaced."""

_LEFTOVER = re.compile(r"\.(new|old|gone)-(.+)-[a-z0-9_]{8}")  # as `tempfile` names them, too


@contextlib.contextmanager
def claimed(path: Path, option: str, in_place: bool = False, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing `path` meanwhile, and remove what a killed one left of it.

    The system drops the lock of a process that ends in any way. A file system without locks causes a warning.

    Args:
        option: Name of the argument that gave `path`, for messages.
        in_place: The files in the folder `path` are written one by one; otherwise `new_folder` replaces it as a whole.
        wait: Wait for the other process.

    Raises:
        OptionError: if another process has claimed `path`.
    """
    name, path = f"`{option}` {path}", path.resolve()
    lock = path / LOCK if in_place else path.with_name(f"{LOCK}-{path.name}")
    absent = [folder for folder in (lock.parent, *lock.parent.parents) if not folder.exists()]
    try:
        descriptor = _locked(lock, name, wait)
        try:
            if not in_place:
                remove_leftovers(path.parent, path.name)
            yield
        finally:
            lock.unlink(missing_ok=True)  # before it is free
            os.close(descriptor)
    finally:
        with contextlib.suppress(OSError):  # not empty: no longer ours
            for folder in absent:
                folder.rmdir()


def _locked(lock: Path, name: str, wait: bool) -> int:
    """Return the descriptor of a new or forgotten file, locked."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)  # NFS locks only what may be written
        except FileNotFoundError:  # another process removed the empty folder
            continue
        try:
            _lock(descriptor, name, wait)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), lock.stat()):  # else its last owner removed it
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, name: str, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(descriptor, 100, 0).decode(errors="replace") or "another process"
        if not wait:
            raise OptionError(f"{name} is being written by {owner}. Wait until it ends, or choose another") from error
        print(f"{name} is being written by {owner}: waiting until it ends", file=sys.stderr)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        print(f"warning: the file system of {name} has no locks ({error.strerror}): do not write it twice", file=sys.stderr)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; afterwards sync it to disk and rename it to `target`, replacing an existing one.

    If writing fails, the old `target` stays unchanged and the new folder is removed. Claim `target` or its folder first; check
    a folder that a user names with `unused_folder`, which does both.
    """
    target = target.resolve()  # `.` has no name; a link stays a link
    target.parent.mkdir(parents=True, exist_ok=True)
    new, old = _temporary(target, "new"), _temporary(target, "old")
    new.mkdir()
    try:
        yield new
        for path in [*new.rglob("*"), new]:
            _sync(path)
        if target.exists():
            target.rename(old)
        new.rename(target)
        _sync(target.parent)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(new, ignore_errors=True)
        raise
    if old.exists():
        remove_folder(old)


@contextlib.contextmanager
def unused_folder(target: Path, option: str, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """Claim `target`, and yield a `new_folder` for it.

    Args:
        option: Name of the argument that gave it, for messages.
        sources: Folders that are read.

    Raises:
        OptionError: if `target` holds files, if it is or holds one of the sources, or if another process writes it.
    """
    folder = target.resolve()
    for source in (source.resolve() for source in sources):
        if folder == source or folder in source.parents:
            relation = "is" if folder == source else "holds"
            raise OptionError(f"`{option}` {target} {relation} {source}, which is read. Choose another `{option}`")
    check_replaceable(target, option)
    with claimed(folder, option):
        if holds_files(folder):
            raise OptionError(f"`{option}` {target} already holds files. Choose another `{option}`, or remove it")
        with new_folder(folder) as new:
            yield new


def check_replaceable(target: Path, option: str) -> None:
    """Raise OptionError, which names `option`, if a new folder cannot replace `target`."""
    folder = target.resolve()
    if folder == Path.cwd():
        raise OptionError(f"`{option}` {target} is the current folder. Choose a new one")
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"`{option}` {target} is a file. Choose another `{option}`")


def holds_files(folder: Path) -> bool:
    """Return True if a folder exists and has other files than those of a killed program, or of one that has claimed it."""
    return folder.exists() and not all(path.name == LOCK or _LEFTOVER.fullmatch(path.name) for path in folder.iterdir())


def remove_folder(folder: Path) -> None:
    """Remove a folder. It is renamed first, so that its name never refers to a part of it."""
    match = _LEFTOVER.fullmatch(folder.name)
    doomed = _temporary(folder.with_name(match[2]) if match else folder, "gone")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove temporary files and folders that a killed program left in a folder, or only those of `name` there.

    One that was killed while it replaced a folder gets the old one back. Call it only in a folder that is claimed.
    """
    for path in folder.glob(".*"):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or name not in (None, match[2]):
            continue
        if match[1] == "old" and not (folder / match[2]).exists():
            path.rename(folder / match[2])
        elif path.is_dir():
            remove_folder(path)
        else:
            path.unlink()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, that is complete as soon as it has its name."""
    new = _temporary(path, "new")
    try:
        new.write_bytes(content.encode() if isinstance(content, str) else content)
        _sync(new)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _temporary(path: Path, kind: str) -> Path:
    """Return a new name next to `path` for what is not complete yet (new), replaced (old) or being removed (gone)."""
    return path.with_name(f".{kind}-{path.name}-{uuid.uuid4().hex[:8]}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def safetensors_header(tensors: Iterable[tuple[str, str, Sequence[int], int]]) -> bytes:
    """Return the start of a safetensors file (https://github.com/huggingface/safetensors#format).

    Args:
        tensors: Name, dtype (such as `F32`), shape and number of bytes of each tensor, in the order of their data.
    """
    about, end = {}, 0
    for name, dtype, shape, n_bytes in tensors:
        about[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    header = json.dumps(about).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: Path, error: type[LitError] = CheckpointError) -> str:
    """Return the text of a file, without a byte order mark. Raise `error` if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8 ({problem.reason} at byte {problem.start}). Save it as UTF-8") from problem


def parse_json(content: bytes, source: object, advice: str, error: type[LitError] = CheckpointError) -> Any:
    """Return the value in UTF-8 encoded JSON. Raise `error`, which names `source` and ends in `advice`, for other content."""
    try:
        value = json.loads(text := content.decode("utf-8-sig"))
        if "\\ud" in text.lower():  # the escape of half a surrogate pair cannot be printed or encoded
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError as problem:
        reason = f"it is not UTF-8 ({problem.reason} at byte {problem.start})"
    except UnicodeEncodeError:
        reason = "it has an unpaired surrogate (invalid Unicode)"
    except json.JSONDecodeError as problem:
        reason = str(problem)
    except (ValueError, RecursionError) as problem:
        reason = "it is nested too deeply" if isinstance(problem, RecursionError) else "a number has thousands of digits"
    raise error(f"{source} is not valid JSON: {reason}. {advice}")


def read_json_object(
    path: Path, schema: type[T] = dict[str, Any], advice: str = "Download it again", error: type[LitError] = CheckpointError
) -> T:
    """Return the object in a JSON file, as `schema.conform` returns it. Raise `error` for any other content."""
    return conform(parse_json(path.read_bytes(), path, advice, error), schema, path, advice, error)


def digest_of(path: Path, like: str) -> str:
    """Return the sha256 in hex, or the git blob id (the hub's digest of small files) if `like` has 40 digits."""
    sha = hashlib.sha256() if len(like) == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            sha.update(chunk)
    return sha.hexdigest()
