"""Datasets of the Hugging Face hub, or folders of their layout, streamed by the library `datasets`."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # see lit_llm.download.resumable
)
from huggingface_hub.utils import get_token

from lit_llm.args.data import PrepareHfArgs
from lit_llm.data.rows import COLUMNS
from lit_llm.data.sources import Source
from lit_llm.data.table_files import BATCH, table_rows
from lit_llm.download.resumable import explained
from lit_llm.errors import DataError
from lit_llm.files import digest_of


@dataclass(frozen=True)
class HubPart:
    """Shard `number` of the `n_parts` of a split."""

    dataset: str
    config_name: str | None
    revision: str | None
    """The commit, so that all processes read the same files."""
    split: str
    columns: tuple[str, ...]
    number: int = 0
    n_parts: int = 1

    def files(self) -> Iterable[tuple[str, Iterable[Any]]]:
        yield f"{self.dataset}, split {self.split}, shard {self.number}", self._rows()

    def _rows(self) -> Iterator[Any]:
        with _readable(self.dataset):
            shard = _opened(self.dataset, self.config_name, self.revision, self.split, self.columns)
            # Tables of Arrow, since rows would be decoded: images, sound and times.
            for table in shard.shard(self.n_parts, self.number).with_format("arrow").iter(BATCH):
                yield from table_rows(table)


@cache
def _opened(dataset: str, config_name: str | None, revision: str | None, split: str, columns: tuple[str, ...]) -> Any:
    """Return a split as `datasets` streams it. It is kept, since its list of files is fetched each time."""
    datasets = _datasets()
    found = datasets.load_dataset(dataset, config_name, split=split, revision=revision, streaming=True)
    return found.select_columns([*columns]) if columns else found


def hub_dataset(args: PrepareHfArgs) -> Source:
    """Return the source of a dataset's splits.

    Raises:
        DataError: if the library is missing, or if there is no such dataset, revision, configuration, split or column.
        OSError: if the hub cannot be reached or refuses.
    """
    _datasets()
    columns = {name: getattr(args, f"{name}_column") for name in COLUMNS}
    if Path(args.dataset).is_dir():
        revision, name, digest = None, args.dataset, _digest_of_folder(Path(args.dataset))
    else:
        revision = _commit(args.dataset, args.revision)
        name = f"{args.dataset}@{revision}"
        digest = hashlib.sha256(name.encode()).hexdigest()

    def parts(split: str | None) -> list[HubPart]:
        if split is None:
            return []
        with _readable(args.dataset):
            about = (args.dataset, args.config_name, revision, split, tuple(args.columns))
            found = _opened(*about)
            return [HubPart(*about, number, found.num_shards) for number in range(found.num_shards)]

    return Source(name, digest, parts(args.split), columns, held_out=parts(args.val_split))


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError("reading datasets of the hub needs the package datasets: pip install datasets") from error
    datasets.disable_progress_bars()
    return datasets


def _commit(dataset: str, revision: str | None) -> str:
    """Return the commit of a branch or tag of a dataset on the hub."""

    def refusal(status: int, code: str) -> str:
        if code == "RevisionNotFound":
            return f"the dataset {dataset} has no revision {revision!r}. Its branches are listed at {_page(dataset)}/tree/main"
        if status in (401, 403, 404):
            return (
                f"there is no dataset {dataset} on the hub, or it is private ({status}). Check ORG/NAME; for a private one set "
                "HF_TOKEN to your access token"
            )
        return f"the hub answers {status} for {dataset}. Try again later"

    try:
        with explained(constants.ENDPOINT, refusal):
            return HfApi().dataset_info(dataset, revision=revision).sha or "main"
    except ValueError as error:  # of validate_repo_id
        raise DataError(f"`dataset` {dataset} is neither a folder nor ORG/NAME of the hub") from error


def _page(dataset: str) -> str:
    return f"{constants.ENDPOINT}/datasets/{dataset}"


@contextmanager
def _readable(dataset: str) -> Iterator[None]:
    """Turn the errors of `datasets` into one line. Those of the network are OSError: the finished parts stay."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        yield
    except DatasetNotFoundError as error:
        if "gated" not in str(error):
            raise DataError(f"{dataset} cannot be read: {' '.join(str(error).split())}") from error
        reason = "your access token does not open it" if get_token() else "no access token is set"
        raise DataError(
            f"{dataset} is gated, and {reason}. Accept its terms at {_page(dataset)}, make a token at "
            f"{constants.ENDPOINT}/settings/tokens, and run the command again with HF_TOKEN=TOKEN before it"
        ) from error
    except (HTTPError, HfHubHTTPError, ConnectionError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConnectionError(f"reading {dataset} fails ({reason}). Run the command again: it resumes") from error
    except (ValueError, OSError, DatasetsError) as error:
        raise DataError(f"{dataset} cannot be read: {' '.join(str(error).split())[:400]}") from error


def _digest_of_folder(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = [f"{path.relative_to(folder)} {digest_of(path, '0' * 64)}" for path in files]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
