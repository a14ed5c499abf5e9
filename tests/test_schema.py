"""Parsed JSON against type hints. A mistake is named with file, key, value and what to do."""

import json
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import pytest
from fuzz import fuzz, mutated

from lit_llm.errors import CheckpointError, DataError
from lit_llm.files import parse_json, read_json_object
from lit_llm.schema import conform


class Token(TypedDict, total=False):
    content: str
    special: bool


class File(Token):
    ids: list[int]
    scale: float
    tokens: dict[str, Token | str]
    kind: Literal["a", "b"] | None
    free: Any


@dataclass
class Arguments:
    r: int
    targets: str | list[str] = "q"
    scale: float | None = None


GOOD = {"ids": [1, 2], "scale": 1, "tokens": {"x": {"content": "y"}, "z": "w"}, "kind": None, "free": {"a": [1]}}
MISTAKES = [
    ({"ids": [1, "2"]}, "f.json: ids[1] must be an integer, found '2'. Do it"),
    ({"ids": [True]}, "ids[0] must be an integer, found true"),
    ({"ids": [10**30]}, "ids[0] must be an integer, found 1000000"),
    ({"ids": None}, "f.json: ids is missing, a list"),
    ({"scale": float("nan")}, "scale must be a finite number, found nan"),
    ({"scale": -float("inf")}, "scale must be a finite number, found -inf"),
    ({"scale": 10**400}, "scale must be a finite number, found 1000"),
    ({"tokens": {"x y\n": []}}, r"tokens.'x y\n' must be an object or a string, found []"),
    ({"content": 3}, "content must be a string, found 3"),
    ({"kind": "c"}, "kind must be 'a', 'b' or null, found 'c'"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(CheckpointError) as error:
        conform({**GOOD, **changes}, File, "f.json", "Do it")
    assert message in str(error.value)


def test_null_means_absent_unless_the_hint_takes_it():
    values = conform({**GOOD, "content": None, "special": None, "other": None}, File, "f", "")
    assert values == {**GOOD, "other": None}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"r": 8, "alpha": 1}, "f: alpha is unknown; known: r, targets, scale"),
        ({"targets": "q"}, "f: r is missing, an integer"),
        ({"r": 8, "targets": [1]}, "f: targets[0] must be a string"),
        ([], "f must be an object, found []"),
    ],
)
def test_a_class_has_exactly_its_arguments(value, message):
    assert Arguments(**conform({"r": 8, "targets": ["q"], "scale": None}, Arguments, "f", "")).scale is None
    with pytest.raises(CheckpointError) as error:
        conform(value, Arguments, "f", "")
    assert message in str(error.value)


def accepts(check, value) -> bool:
    try:
        check(value)
    except ValueError:
        return False
    return True


@pytest.fixture(scope="module")
def reference():
    """The schema of `File` as pydantic checks it: strictly, with finite numbers and further keys."""
    pydantic = pytest.importorskip("pydantic")
    options = {"strict": True, "extra": "allow", "allow_inf_nan": False}
    token: Any = pydantic.create_model("Token", __config__=options, content=(str, ""), special=(bool, False))
    hints = {"ids": list[int], "scale": float, "tokens": dict[str, token | str], "kind": Literal["a", "b"] | None, "free": Any}
    return pydantic.create_model("File", __base__=token, **{name: (hint, ...) for name, hint in hints.items()}).model_validate


def has_no_exception(value) -> bool:
    text = json.dumps({**(value if isinstance(value, dict) else {}), "kind": 0})
    return "null" not in text and "\\ud800" not in text


@fuzz(mutated(GOOD, most=2).filter(has_no_exception))
def test_pydantic_accepts_the_same_values(reference, value):
    """Except for null, unpaired surrogates, and integers of more than 64 bits."""
    ids = value.get("ids") if isinstance(value, dict) else None
    too_long = isinstance(ids, list) and any(isinstance(i, int) and abs(i) >= 2**63 for i in ids)
    assert accepts(lambda v: conform(v, File, "f", ""), value) == (accepts(reference, value) and not too_long)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"\xff{}", "it is not UTF-8 (invalid start byte at byte 0)"),
        (b"[" * 10**5, "it is nested too deeply"),
        (b"9" * 10**4, "a number has thousands of digits"),
        (b"", "Expecting value"),
        (b'{"a": ["\\uD83D"]}', "it has an unpaired surrogate (invalid Unicode)"),
    ],
)
def test_what_is_not_json_is_named(tmp_path, content, reason):
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(DataError) as error:
        read_json_object(tmp_path / "f.json", advice="Download it again", error=DataError)
    assert str(error.value).startswith(f"{tmp_path}/f.json is not valid JSON: {reason}")
    assert str(error.value).endswith(". Download it again")


def test_a_byte_order_mark_is_skipped():
    assert parse_json(b'\xef\xbb\xbf{"a": 1}', "f", "") == {"a": 1}


def test_an_emoji_in_escapes_is_read():
    assert parse_json(rb'"\ud83d\ude42"', "f", "") == "🙂"
