"""Mutated inputs of readers: each must end in a result, or in an error that a user understands.

`pytest -m fuzz` runs a few fixed inputs per reader, `pytest -m fuzz --fuzz 20000` as many random ones.
"""

import contextlib
import copy
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_llm.errors import LitError

FIXED = 60
"""Inputs per reader without --fuzz."""

# Of every JSON type: empty, edges of ranges, what a float or an int cannot hold, invalid Unicode, nested.
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 0.0, 0.5, -1.5, 1e-5, 1e308, float("nan"), float("inf"), -float("inf"),
    2**31 - 1, 2**31, 2**32, 2**63, 10**9, -(10**9), 10**30, 10**400,
    "", " ", "a", "0", "nan", "null", "\0", "\ud800", "é\n", "{}", "a" * 3000, "../x", "/etc/passwd",
    [], [[]], [None], ["a"], [0], [1, 2], [{}], {}, {"a": 1}, {"": None}, {"0": {}}, {"content": 1}, {"\ud800": "\ud800"},
]  # fmt: skip


class Deep(bytes):
    """Deeper than any parser goes, and short when shown."""

    def __repr__(self) -> str:
        return f"Deep({self[:12]!r}...)"


DEEP = [Deep(b"[" * 20_000), Deep(b'{"a":' * 20_000), Deep(b"[" * 20_000 + b"]" * 20_000)]

# How Python says that a value has another type or range than the code expects: nobody checked it.
PYTHONS_WORDS = re.compile(
    r"object (is not|has no|does not|cannot)|unsupported operand|not supported between|unexpected keyword|positional argument"
    r"|could not convert|cannot (convert|unpack|be interpreted|be converted)|invalid literal|division by zero|indices must be"
    r"|unhashable|must be \w+, not \w+|index out of range|Out of range float|domain error|too large to|dictionary update"
    r"|has no attribute|NoneType|codec can't|surrogates not allowed|recursion depth|argument of type"
    r"|missing \d+ required|not enough values|too many values|expected str\b|not iterable|<class '|Traceback"
)


def fuzz(*strategies: st.SearchStrategy[Any], **named: st.SearchStrategy[Any]) -> Any:
    """Decorate a test of one input: fixed inputs, or with --fuzz N, N random ones without a limit of time."""

    n = int(os.environ.get("LIT_LLM_FUZZ", "0"))  # --fuzz

    def decorate(test: Any) -> Any:
        checks = list(HealthCheck)
        budget = settings(
            max_examples=n or FIXED, derandomize=not n, database=None, deadline=None, suppress_health_check=checks
        )
        test = budget(given(*strategies, **named)(test))
        return pytest.mark.fuzz(pytest.mark.timeout(0)(test) if n else test)

    return decorate


@contextlib.contextmanager
def result_or_clear_error(*names: str, errors: tuple[type[Exception], ...] = (LitError,)) -> Iterator[None]:
    """Accept a result, and `errors` whose message has one of `names` and is not in Python's own words."""
    try:
        yield
    except errors as error:
        message = str(error)
        assert not PYTHONS_WORDS.search(message), message
        assert not names or any(name in message for name in names), message
        message.encode()  # can be printed
        assert len(message) < 2000, message[:2000]


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _paths(item, (*at, key))


def _change(value: Any, path: tuple[Any, ...], how: str, odd: Any) -> Any:
    """Return `value` with the node at `path` replaced, removed, wrapped, scaled, or given a new neighbour."""
    if not path:
        return odd if how == "replace" else [value] if how == "wrap" else value
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    key = path[-1]
    if how == "replace":
        parent[key] = odd
    elif how == "remove":
        del parent[key]
    elif how == "wrap":
        parent[key] = [parent[key]]
    elif how == "scale":
        parent[key] = -parent[key] if isinstance(parent[key], int | float) else odd
    elif isinstance(parent, dict):
        parent["zzz"] = odd
    else:
        parent.append(odd)
    return value


@st.composite
def mutated(draw: Any, value: Any, most: int = 3) -> Any:
    """A copy of JSON data with one to `most` changes."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(list(_paths(value))))
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "wrap", "scale", "add"]))
        odd = draw(st.sampled_from(ODD) | st.integers(-300, 300) | st.floats())
        value = _change(value, path, how, copy.deepcopy(odd))
    return value


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@st.composite
def mutated_bytes(draw: Any, content: bytes) -> bytes:
    """A file with a changed, missing or additional piece."""
    start = draw(st.integers(0, len(content)))
    end = min(start + draw(st.integers(0, 8)), len(content))
    piece = draw(st.sampled_from([b"", b"\xff", b"\0", b"\xef\xbb\xbf", b"{", b'"', b"NaN", b"Infinity", b"1e999", b"9" * 5000])
                 | st.binary(max_size=8))  # fmt: skip
    return content[:start] + (b"" if draw(st.booleans()) and draw(st.booleans()) else piece) + content[end:]


def mutated_json(value: Any, most: int = 3) -> st.SearchStrategy[bytes]:
    """A JSON file: mostly valid JSON with changed values, else damaged, or nested deeply."""
    damaged = mutated_bytes(as_json(value)) | st.sampled_from([*DEEP, b"", b"{}", b"null", b"\xef\xbb\xbf{}"])
    values = mutated(value, most).map(as_json)
    return st.one_of(values, values, values, values, values, values, values, damaged)


def with_header(header: bytes, data: bytes, n_bytes: int | None = None) -> bytes:
    """A safetensors file (https://github.com/huggingface/safetensors#format); `n_bytes` is the length that it claims."""
    return (len(header) if n_bytes is None else n_bytes).to_bytes(8, "little") + header + data


@st.composite
def mutated_safetensors(draw: Any, content: bytes) -> bytes:
    """A file whose header has changes, or a wrong length, or whose data are too short."""
    n = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + n], content[8 + n :]
    how = draw(st.sampled_from(["header", "header", "header", "header", "bytes", "length", "data"]))
    if how == "header":
        return with_header(draw(mutated_json(json.loads(header))), data)
    if how == "bytes":
        return with_header(draw(mutated_bytes(header)), data)
    if how == "length":
        return with_header(header, data, draw(st.sampled_from([0, 1, n - 1, n + 1, 10**8, 2**63, 2**64 - 1])))
    return with_header(header, data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=2)))
