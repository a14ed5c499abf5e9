"""Tables in parquet and Arrow files, whose columns have types."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_llm.data.streams import format_of, import_pyarrow
from lit_llm.errors import DataError, brief
from lit_llm.files import json_text
from lit_llm.schema import shown

ARROW = (".arrow", ".feather", ".ipc")
BATCH = 1024  # rows
NOT_JSON = re.compile("half|float|double|date|time|duration|interval|decimal|binary|map<")


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file, with one batch in memory at a time."""
    with _table(path, "parquet") as pyarrow:
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            check_unique(path, file.schema_arrow.names)
            for batch in file.iter_batches(BATCH):
                yield from table_rows(batch)


def arrow_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Arrow file, in either of its formats: the file (Feather) or the stream (`datasets`)."""
    with _table(path, "Arrow") as pyarrow, pyarrow.memory_map(str(path)) as file:
        for batch in _batches(pyarrow, file):
            check_unique(path, batch.schema.names)
            for start in range(0, batch.num_rows, BATCH):
                yield from table_rows(batch.slice(start, BATCH))


def _batches(pyarrow: Any, file: Any) -> Iterator[Any]:
    is_stream = file.read(6) != b"ARROW1"
    file.seek(0)
    if is_stream:
        yield from pyarrow.ipc.open_stream(file)
    else:
        reader = pyarrow.ipc.open_file(file)
        yield from map(reader.get_batch, range(reader.num_record_batches))


def table_rows(batch: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table or a batch as JSON would have them.

    A missing value in a column of floats, which pandas writes as NaN, becomes None.

    Raises:
        pyarrow.ArrowInvalid: if the content is damaged, as by text that is not UTF-8.
    """
    batch.validate(full=True)  # Arrow reads beyond its memory where an offset is wrong
    if not any(NOT_JSON.search(str(field.type)) for field in batch.schema):
        yield from batch.to_pylist()
        return
    for row in batch.to_pylist():
        yield json.loads(json_text(row, default=_shown))


def _shown(value: Any) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


@contextmanager
def _table(path: Path, kind: str) -> Iterator[Any]:
    """Yield pyarrow, and turn its errors into DataError."""
    pyarrow = import_pyarrow(path, kind)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        yield pyarrow
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not {kind}, or damaged ({brief(error)})") from error


def check_unique(path: Path, columns: Sequence[str]) -> None:
    """Raise DataError for a name that two columns have, unless it is empty."""
    twice = [name for i, name in enumerate(columns) if name.strip() and name in columns[:i]]
    if twice:
        raise DataError(f"{path} has two columns with the same name: {shown(twice[0])}. Rename one of them")


def check_types(paths: Sequence[Path], columns: Collection[str]) -> None:
    """Raise DataError if one of the columns holds text or turns in some tables and other values, as integers, in others.

    Args:
        paths: Files of any format; only tables are compared.
    """
    found: dict[str, tuple[Path, str, bool]] = {}
    for path in (path for path in paths if format_of(path) in (".parquet", *ARROW)):
        for column, kind, is_usable in _types(path):
            if column.strip().lower() not in columns or kind == "null":
                continue
            first, other, was_usable = found.setdefault(column, (path, kind, is_usable))
            if is_usable != was_usable:
                raise DataError(
                    f"{path}: the column {shown(column)} is {kind}, but {other} in {first}. Write it with one type in all files"
                )


def _types(path: Path) -> Iterator[tuple[str, str, bool]]:
    """Yield each column's name, its type, and whether a row of text or turns can have it."""
    with _table(path, "a table") as pyarrow:
        import pyarrow.parquet

        if format_of(path) == ".parquet":
            schema = pyarrow.parquet.read_schema(path)
        else:
            with pyarrow.memory_map(str(path)) as file:
                schema = next((batch.schema for batch in _batches(pyarrow, file)), pyarrow.schema([]))
        types = pyarrow.types
        for field in schema:
            kind = field.type.value_type if types.is_dictionary(field.type) else field.type
            # Missing values alone are a column of NaN in pandas.
            usable = [types.is_string, types.is_large_string, types.is_string_view, types.is_nested, types.is_floating]
            yield field.name, str(kind), any(check(kind) for check in usable)
