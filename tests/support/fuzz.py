"""Mutated inputs of readers: each must end in a result, or in an error that a user understands.

`pytest -m fuzz` runs a few fixed inputs per reader, `pytest -m fuzz --fuzz 20000` as many random ones.
"""

import contextlib
import copy
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_llm.checkpoint.adapters import attach_adapter
from lit_llm.errors import CheckpointError, LitError
from lit_llm.model.gpt import GPT

T = TypeVar("T")

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


def attach(base: Callable[[], GPT], folder: Path, name: str, content: bytes) -> None:
    """Attach an adapter whose file `name` has another content."""
    original = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    try:
        with result_or_clear_error(str(folder), errors=(CheckpointError,)):
            attach_adapter(base(), folder)
    finally:
        (folder / name).write_bytes(original)


def drawn(make: Callable[[Random], T]) -> st.SearchStrategy[T]:
    """Inputs that `make` draws: a hundred times faster than if hypothesis drew each choice, and small without being shrunk."""
    return st.integers(0, 2**64).map(lambda seed: make(Random(seed)))


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _paths(item, (*at, key))


def _odd(random: Random) -> Any:
    number = random.choice([random.randint(-300, 300), random.uniform(-2, 2), 10 ** random.uniform(-20, 20)])
    return copy.deepcopy(random.choice(ODD)) if random.random() < 0.8 else number


def _change(value: Any, random: Random) -> Any:
    """Return `value` with one node replaced, removed, wrapped, negated, or given a new neighbour."""
    how = random.choice(["replace", "replace", "replace", "remove", "wrap", "negate", "add"])
    path = random.choice(list(_paths(value)))
    if not path:
        return _odd(random) if how == "replace" and random.random() < 0.3 else value
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    key = path[-1]
    if how == "remove":
        del parent[key]
    elif how == "wrap":
        parent[key] = [parent[key]]
    elif how == "negate" and isinstance(parent[key], int | float):
        parent[key] = -parent[key]
    elif how == "add" and isinstance(parent, dict):
        parent[random.choice(["zzz", *map(str, parent)])] = _odd(random)
    else:
        parent[key] = _odd(random)
    return value


def _changed(text: str, most: int, random: Random) -> Any:
    value = json.loads(text)
    for _ in range(random.randint(1, most)):
        value = _change(value, random)
    return value


def mutated(value: Any, most: int = 3) -> st.SearchStrategy[Any]:
    """Copies of JSON data with one to `most` changes."""
    text = json.dumps(value)
    return drawn(lambda random: _changed(text, most, random))


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


_PIECES = [b"", b"\xff", b"\0", b"\xef\xbb\xbf", b"{", b'"', b"NaN", b"Infinity", b"1e999", b"9" * 5000, b"\n", b"-1"]


def _damaged(content: bytes, random: Random) -> bytes:
    start = random.randint(0, len(content))
    end = len(content) if random.random() < 0.1 else min(start + random.randint(0, 8), len(content))
    piece = random.choice(_PIECES) if random.random() < 0.6 else random.randbytes(random.randint(1, 8))
    return content[:start] + piece + content[end:]


def mutated_bytes(content: bytes) -> st.SearchStrategy[bytes]:
    """Files with a changed, missing or additional piece."""
    return drawn(lambda random: _damaged(content, random))


def _changed_json(text: str, most: int, random: Random) -> bytes:
    if random.random() < 0.85:
        return as_json(_changed(text, most, random))
    return random.choice([*DEEP, b"", b"{}", b"null", b"\xef\xbb\xbf{}", *[_damaged(text.encode(), random) for _ in range(9)]])


def mutated_json(value: Any, most: int = 3) -> st.SearchStrategy[bytes]:
    """JSON files: mostly valid JSON with changed values, else damaged, or nested deeply."""
    text = json.dumps(value)
    return drawn(lambda random: _changed_json(text, most, random))


def with_header(header: bytes, data: bytes, n_bytes: int | None = None) -> bytes:
    """A safetensors file (https://github.com/huggingface/safetensors#format); `n_bytes` is the length that it claims."""
    return (len(header) if n_bytes is None else n_bytes).to_bytes(8, "little") + header + data


def mutated_safetensors(content: bytes) -> st.SearchStrategy[bytes]:
    """Files whose header has changes, or a wrong length, or whose data are too short or too long."""
    n = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + n], content[8 + n :]

    def change(random: Random) -> bytes:
        how = random.random()
        if how < 0.7:
            return with_header(_changed_json(header.decode(), 3, random), data)
        if how < 0.8:
            return with_header(header, data, random.choice([0, 1, n - 1, n + 1, 10**8, 2**63, 2**64 - 1]))
        if how < 0.9:
            return with_header(header, data[: random.randint(0, len(data))] + random.randbytes(random.randint(0, 2)))
        return _damaged(content, random)

    return drawn(change)
