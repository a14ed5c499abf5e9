"""Files and folders that are complete when they bear their name."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; afterwards it is on disk and renamed to `target`, replacing what was there.

    If writing fails, the old `target` stays as it was and the new folder is removed. A folder that a user names is checked
    before, by `unused_folder`.
    """
    target = target.resolve()  # `.` has no name, and a link stays one
    target.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    new, old = (target.with_name(f".{kind}-{target.name}-{token}") for kind in ("new", "old"))
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
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def unused_folder(target: Path, flag: str, sources: Iterable[Path] = ()) -> Path:
    """`target`, resolved. Raises ValueError, naming the `flag` that gave it, if files are there, or if it is or holds one
    of the folders that are read."""
    folder = target.resolve()
    for source in (source.resolve() for source in sources):
        if folder == source or folder in source.parents:
            relation = "is" if folder == source else "holds"
            raise ValueError(f"{flag} {target} {relation} {source}, which is read. Choose another {flag}")
    check_replaceable(target, flag)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{flag} {target} holds files already. Choose another {flag}, or remove it")
    return folder


def check_replaceable(target: Path, flag: str) -> None:
    """Raises ValueError, naming the `flag` that gave it, if a new folder cannot take the place of `target`."""
    folder = target.resolve()
    if folder == Path.cwd():
        raise ValueError(f"{flag} {target} is the folder that this runs in. Name a new one")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{flag} {target} is a file. Choose another {flag}")


def remove_folder(folder: Path) -> None:
    """Remove a folder; at no moment does a part of it bear its name."""
    doomed = folder.with_name(f".old-{folder.name}-{uuid.uuid4().hex[:8]}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(parent: Path) -> None:
    """Remove what a killed program left of folders that it was making or removing in `parent`."""
    for path in [*parent.glob(".new-*"), *parent.glob(".old-*")]:
        shutil.rmtree(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def safetensors_header(tensors: Iterable[tuple[str, str, Sequence[int], int]]) -> bytes:
    """What a safetensors file begins with (https://github.com/huggingface/safetensors#format), for tensors whose bytes follow
    one after the other: name, dtype as in `F32`, shape and number of bytes of each."""
    about, end = {}, 0
    for name, dtype, shape, n_bytes in tensors:
        about[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    header = json.dumps(about).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError, naming the file, for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return value


def digest_of(path: Path, like: str) -> str:
    """sha256 in hex; the git blob id, which the hub gives for small files, if `like` has its 40 digits."""
    sha = hashlib.sha256() if len(like) == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            sha.update(chunk)
    return sha.hexdigest()
