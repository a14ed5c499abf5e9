"""Files and folders that are complete as soon as they have their final name."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lit_llm.errors import CheckpointError, LitError, OptionError
from lit_llm.schema import conform

T = TypeVar("T")


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; afterwards sync it to disk and rename it to `target`, replacing an existing one.

    If writing fails, the old `target` stays unchanged and the new folder is removed. Check a folder that a user names first,
    with `unused_folder`.
    """
    target = target.resolve()  # `.` has no name; a link stays a link
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


def unused_folder(target: Path, option: str, sources: Iterable[Path] = ()) -> Path:
    """Return `target`, resolved.

    Args:
        option: Name of the argument that gave it, for messages.
        sources: Folders that are read.

    Raises:
        OptionError: if `target` holds files, or if it is or holds one of the sources.
    """
    folder = target.resolve()
    for source in (source.resolve() for source in sources):
        if folder == source or folder in source.parents:
            relation = "is" if folder == source else "holds"
            raise OptionError(f"`{option}` {target} {relation} {source}, which is read. Choose another `{option}`")
    check_replaceable(target, option)
    if folder.is_dir() and any(folder.iterdir()):
        raise OptionError(f"`{option}` {target} already holds files. Choose another `{option}`, or remove it")
    return folder


def check_replaceable(target: Path, option: str) -> None:
    """Raise OptionError, which names `option`, if a new folder cannot replace `target`."""
    folder = target.resolve()
    if folder == Path.cwd():
        raise OptionError(f"`{option}` {target} is the current folder. Choose a new one")
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"`{option}` {target} is a file. Choose another `{option}`")


def remove_folder(folder: Path) -> None:
    """Remove a folder. It is renamed first, so that its name never refers to a part of it."""
    doomed = folder.with_name(f".old-{folder.name}-{uuid.uuid4().hex[:8]}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(parent: Path) -> None:
    """Remove temporary folders that a killed program left in `parent`."""
    for path in [*parent.glob(".new-*"), *parent.glob(".old-*")]:
        shutil.rmtree(path)


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


def json_text(value: Any, **options: Any) -> str:
    """Return JSON as `json.dumps(value, **options)`; NaN and infinities, which JSON does not have, become null."""
    options = {"ensure_ascii": False, **options}
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        finite = json.loads(json.dumps(value, **options), parse_constant=lambda name: None)
        return json.dumps(finite, **options)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json_text(value, indent=2) + "\n", encoding="utf-8")


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
