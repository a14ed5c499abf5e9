"""One file over HTTP: resumed where an earlier run stopped, checked, and in place only when complete.

Proxies, certificates and redirects, which keep a token from other hosts, are those of huggingface_hub's HTTP client. Its own
download starts from zero in every run (https://github.com/huggingface/huggingface_hub/issues/4196), hence this one.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx or httpx2, whichever huggingface_hub uses
)
from huggingface_hub.utils import get_session, hf_raise_for_status
from tqdm import tqdm

from lit_llm.files import digest_of

TRIES = 5  # without a new byte; any progress starts the count again
FIRST_WAIT = 1.0  # seconds before the second try, doubled for each further one
TIMEOUT = 30.0  # seconds without a byte
SECONDS_BETWEEN_LINES = 10


def fetch(url: str, target: Path, digest: str | None, max_bytes: int, headers: Mapping[str, str] | None = None) -> None:
    """Fetch `url` into `target.part`, going on where an earlier run stopped, check it, and rename it.

    Args:
        digest: Checksum of the whole file, as `digest_of` gives it; None where it is not known.

    Raises:
        HTTPError: if the server cannot be reached, or refuses (then its subclass HfHubHTTPError). The part is kept.
        OSError: if the checksum differs, and ValueError if the file is larger than `max_bytes`. The part is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part, stamp = part_path(target), target.with_name(f"{target.name}.part.of")
    part_of = stamp.read_text() if stamp.is_file() else ""  # digest, or else ETag, of the file that the part is of
    if not part_of or digest not in (None, part_of):
        part.unlink(missing_ok=True)
    try:
        _stream_patiently(url, part, stamp, digest, max_bytes, headers or {})
    except ValueError:
        _discard(part, stamp)
        raise
    if digest is not None and (found := digest_of(part, digest)) != digest:
        _discard(part, stamp)
        raise OSError(
            f"{target.name} arrived damaged: its checksum is {found[:12]}..., it should be {digest[:12]}... "
            "It was removed. Run the same command again to fetch it anew"
        )
    os.replace(part, target)
    stamp.unlink()


def part_path(target: Path) -> Path:
    """Where the bytes of an interrupted download wait."""
    return target.with_name(f"{target.name}.part")


@contextlib.contextmanager
def explained(address: str, refusal: Callable[[int, str], str]) -> Iterator[None]:
    """Turn errors of HTTP into OSError. `refusal` words a status and the hub's error code."""
    try:
        yield
    except HfHubHTTPError as error:
        raise OSError(refusal(error.response.status_code, error.response.headers.get("X-Error-Code", ""))) from error
    except HTTPError as error:
        raise ConnectionError(
            f"the connection to {address} fails ({_reason(error)}). Check the network, and HTTPS_PROXY if you are behind a "
            "proxy. Then run the same command again: it goes on where it stopped"
        ) from error


def _stream_patiently(
    url: str, part: Path, stamp: Path, digest: str | None, max_bytes: int, headers: Mapping[str, str]
) -> None:
    """Stream until `part` is complete; a server that breaks off or is busy is asked again."""
    failures = 0
    while _size(part) < max_bytes:  # equal, where the size was known: only the renaming is missing
        before = _size(part)
        try:
            return _stream(url, part, stamp, digest, max_bytes, headers)
        except HTTPError as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if status == 416:  # the part is no beginning of what the server has
                part.unlink()
            failures = failures + 1 if _size(part) == before else 1
            if failures == TRIES or status not in (None, 416, 429, 500, 502, 503, 504):
                raise
            print(f"{part.stem}: {_reason(error)}. Trying again", file=sys.stderr)
            time.sleep(FIRST_WAIT * 2 ** (failures - 1))


def _stream(url: str, part: Path, stamp: Path, digest: str | None, max_bytes: int, headers: Mapping[str, str]) -> None:
    """Append what `part` lacks, or write it from the start where the server does not resume.

    A part is resumed if the whole file's checksum is known, or if the server confirms by the ETag that its file is the same.
    """
    have = _size(part)
    wanted = {"Accept-Encoding": "identity", **headers}  # a range of a compressed body would count other bytes
    if have:
        wanted["Range"] = f"bytes={have}-"
        if digest is None:
            wanted["If-Range"] = stamp.read_text()
    with get_session().stream("GET", url, headers=wanted, timeout=TIMEOUT) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:
            have = 0
            part.unlink(missing_ok=True)
            etag = response.headers.get("ETag", "")
            stamp.write_text(digest or ("" if etag.startswith("W/") else etag))  # a weak one does not identify the bytes
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with part.open("ab") as file, _progress(part.stem, have, total) as advance:
            for chunk in response.iter_bytes():
                have += len(chunk)
                if max(have, total or 0) > max_bytes:
                    raise ValueError(f"{url} is larger than {size_text(max_bytes)}, the limit for it. It was not kept")
                file.write(chunk)
                advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())


def _discard(part: Path, stamp: Path) -> None:
    part.unlink(missing_ok=True)
    stamp.unlink(missing_ok=True)


@contextlib.contextmanager
def _progress(name: str, done: int, total: int | None) -> Iterator[Callable[[int], object]]:
    """Yield a function to call with each number of new bytes: a bar on a terminal, else a line now and then. To stderr."""
    if sys.stderr.isatty():
        with tqdm(total=total, initial=done, desc=name, unit="B", unit_scale=True, dynamic_ncols=True) as bar:
            yield bar.update
        return
    last_line = time.monotonic()
    if done:
        print(f"{name}: going on after {size_text(done)}", file=sys.stderr)

    def advance(n_bytes: int) -> None:
        nonlocal done, last_line
        done += n_bytes
        if time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            print(f"{name}: {size_text(done)}{f' of {size_text(total)}' if total else ''}", file=sys.stderr)

    yield advance
    print(f"{name}: {size_text(done)}, done", file=sys.stderr)


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def size_text(n_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} bytes"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
