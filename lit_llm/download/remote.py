"""Files behind addresses: on the web, on the hub, and in the stores that fsspec knows, such as `s3://` and `gs://`."""

import glob
import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from lit_llm.download.hub import local_file
from lit_llm.errors import DataError, LitError, brief
from lit_llm.files import claimed

DOWNLOADS = Path("data/downloads")


def is_address(source: str) -> bool:
    return "://" in source


def listed(source: str) -> tuple[list[str], list[str]]:
    """Return the addresses of the files that an address names, and of all files in their folders.

    The second list is empty for a single file.

    Args:
        source: Address of a file, a folder, or a pattern such as `s3://bucket/shards/*.parquet`. On the web: of a file.

    Raises:
        DataError: if a package for such addresses is missing, or the files cannot be listed.
    """
    is_pattern = glob.has_magic(source)
    if source.startswith(("http://", "https://")) or (source.startswith("hf://") and _is_file(source) and not is_pattern):
        return [source], []
    protocol = source.partition("://")[0]
    with _explained(source):
        store, path = _store(source)
        if not is_pattern and not store.isdir(path):
            return [source], []
        names = [name for name in store.glob(path) if store.isfile(name)] if is_pattern else _files_in(store, path)
        folders = sorted({str(PurePosixPath(name).parent) for name in names})
        present = [file for folder in folders for file in _files_in(store, folder)]

    def address(name: str) -> str:
        return f"{protocol}://{name.lstrip('/')}"

    return [*map(address, names)], [*map(address, present)]


def fetched(address: str) -> Path:
    """Return the local file of an address, fetched into `data/downloads` unless it is there."""
    if address.startswith(("http://", "https://", "hf://")):
        return local_file(address, DOWNLOADS)
    name = re.sub(r"[^\w.-]", "_", PurePosixPath(address).name)
    target = DOWNLOADS / f"{hashlib.sha256(address.encode()).hexdigest()[:8]}-{name}"
    with claimed(target, "data_file", wait=True):
        if target.is_file():
            print(f"{target} is there already; remove it to fetch {address} again", file=sys.stderr)
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        with _explained(address):
            store, path = _store(address)
            store.get_file(path, str(part))
        part.replace(target)
    return target


def _is_file(address: str) -> bool:
    return "." in PurePosixPath(address).name


def _store(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        package = re.search(r"\w+fs\b", str(error))
        hint = f": pip install {package[0]}" if package else ""
        raise DataError(f"{address}: {brief(error)}{hint}") from error
    except ValueError as error:
        raise DataError(f"{address}: {brief(error)}. Use a path, https://, hf://, s3:// or gs://") from error


def _files_in(store: Any, folder: str) -> list[str]:
    return [entry["name"] for entry in store.ls(folder, detail=True) if entry["type"] == "file"]


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn the errors of a store, which each of them has its own classes for, into DataError."""
    try:
        yield
    except LitError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{address} does not exist, or needs a login") from error
    except HfHubHTTPError as error:
        advice = f"For a gated dataset, accept its terms at {constants.ENDPOINT} and set HF_TOKEN"
        raise DataError(f"{address} cannot be read ({error.response.status_code}). {advice}") from error
    except Exception as error:
        raise DataError(
            f"{address} cannot be read ({type(error).__name__}: {brief(error)}). Check address and login"
        ) from error
