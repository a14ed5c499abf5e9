"""Fetch one file over HTTP: resumed where an earlier run stopped, checked, and in place only when complete.

huggingface_hub's HTTP client handles proxies, certificates and redirects, and sends a token to no other host. Its own download
starts from zero in every run (https://github.com/huggingface/huggingface_hub/issues/4196), hence this one.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx or httpx2, whichever huggingface_hub uses
)
from huggingface_hub.utils import get_session, hf_raise_for_status
from tqdm import tqdm

from lit_llm.errors import DataError
from lit_llm.files import digest_of

TRIES = 5  # without a new byte; any progress starts the count again
FIRST_WAIT = 1.0  # seconds before the second try, doubled for each further one
TIMEOUT = 30.0  # seconds without a byte
SECONDS_BETWEEN_LINES = 10


def fetch(url: str, target: Path, digest: str | None, max_bytes: int, headers: Mapping[str, str] | None = None) -> None:
    """Fetch `url` into `target.part`, resuming an earlier run, check it, and rename it.

    Args:
        digest: Checksum of the whole file, as `digest_of` returns it; None if it is not known.

    Raises:
        HTTPError: if the server cannot be reached, or refuses (then its subclass HfHubHTTPError). The part is kept.
        OSError: if the checksum differs, and DataError if the file is larger than `max_bytes`. The part is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    download = _Download(url, part_path(target), target.with_name(f"{target.name}.part.of"), digest, max_bytes, headers or {})
    if not download.part_of() or digest not in (None, download.part_of()):
        download.part.unlink(missing_ok=True)
    try:
        _stream_patiently(download)
    except ValueError:
        download.discard()
        raise
    if digest is not None and (found := digest_of(download.part, digest)) != digest:
        download.discard()
        raise OSError(
            f"{target.name} arrived damaged and was removed: its checksum is {found[:12]}... instead of {digest[:12]}... "
            "Run the same command again to fetch it again"
        )
    os.replace(download.part, target)
    download.stamp.unlink()


def part_path(target: Path) -> Path:
    """Return the file that keeps the bytes of an interrupted download."""
    return target.with_name(f"{target.name}.part")


@dataclass(frozen=True)
class _Download:
    """A file at `url` of which `part` has the first bytes."""

    url: str
    part: Path
    stamp: Path  # holds the digest, or else the ETag, of the file that the part is of
    digest: str | None
    max_bytes: int
    headers: Mapping[str, str]

    def size(self) -> int:
        """Return the number of bytes that `part` has."""
        return self.part.stat().st_size if self.part.is_file() else 0

    def part_of(self) -> str:
        return self.stamp.read_text() if self.stamp.is_file() else ""

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.stamp.unlink(missing_ok=True)


@contextlib.contextmanager
def explained(address: str, refusal: Callable[[int, str], str]) -> Iterator[None]:
    """Turn errors of HTTP into OSError. `refusal` returns the message for a status and the hub's error code."""
    try:
        yield
    except HfHubHTTPError as error:
        raise OSError(refusal(error.response.status_code, error.response.headers.get("X-Error-Code", ""))) from error
    except HTTPError as error:
        raise ConnectionError(
            f"the connection to {address} fails ({_reason(error)}). Check the network, and HTTPS_PROXY if you are behind a "
            "proxy. Then run the same command again: it resumes where it stopped"
        ) from error


def _stream_patiently(download: _Download) -> None:
    """Stream until the part is complete; retry when the server breaks off or is busy."""
    failures = 0
    while (before := download.size()) < download.max_bytes:  # equal, if the size was known: only the renaming is missing
        try:
            return _stream(download)
        except HTTPError as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if status == 416:  # the server has no such range: the part is not the beginning of its file
                download.part.unlink()
            failures = failures + 1 if download.size() == before else 1
            if failures == TRIES or status not in (None, 416, 429, 500, 502, 503, 504):
                raise
            print(f"{download.part.stem}: {_reason(error)}. Trying again", file=sys.stderr)
            time.sleep(FIRST_WAIT * 2 ** (failures - 1))


def _stream(download: _Download) -> None:
    """Append the missing bytes to the part, or write it from the start if the server does not resume.

    A part is resumed if the whole file's checksum is known, or if the server confirms by the ETag that its file is the same.
    """
    have, part = download.size(), download.part
    wanted = {"Accept-Encoding": "identity", **download.headers}  # a range of a compressed body would count other bytes
    if have:
        wanted["Range"] = f"bytes={have}-"
        if download.digest is None:
            wanted["If-Range"] = download.part_of()
    with get_session().stream("GET", download.url, headers=wanted, timeout=TIMEOUT) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:
            have = 0
            part.unlink(missing_ok=True)
            etag = response.headers.get("ETag", "")
            # A weak ETag does not identify the bytes.
            download.stamp.write_text(download.digest or ("" if etag.startswith("W/") else etag))
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with part.open("ab") as file, _progress(part.stem, have, total) as advance:
            for chunk in response.iter_bytes():
                have += len(chunk)
                if max(have, total or 0) > download.max_bytes:
                    limit = size_text(download.max_bytes)
                    raise DataError(f"{download.url} is larger than {limit}, the limit for it. Use a smaller file")
                file.write(chunk)
                advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def _progress(name: str, done: int, total: int | None) -> Iterator[Callable[[int], object]]:
    """Yield a function that takes each number of new bytes: a bar on a terminal, else a line every 10 s, on stderr."""
    if sys.stderr.isatty():
        with tqdm(total=total, initial=done, desc=name, unit="B", unit_scale=True, dynamic_ncols=True) as bar:
            yield bar.update
        return
    last_line = time.monotonic()
    if done:
        print(f"{name}: resuming after {size_text(done)}", file=sys.stderr)

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
    """Return a size in decimal units, as in `1.5 GB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} bytes"
