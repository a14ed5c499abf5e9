"""Parsed JSON checked against type hints: the reader of a file declares what the file holds."""

import inspect
import re
import reprlib
import sys
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from lit_llm.errors import CheckpointError, LitError

_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a finite number",
    str: "a string",
}
_NAMES |= {list: "a list", dict: "an object", types.NoneType: "null"}
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring = 2, 100


def conform(value: Any, schema: Any, source: object, advice: str, error: type[LitError] = CheckpointError) -> Any:
    """Return `value` without the keys whose null means that they are absent. Raise `error` unless it is as the schema says.

    Args:
        schema: Type hint: `bool`, `int`, `float`, `str`, `list[X]`, `dict[str, X]`, `Any`, `Literal`, a union of hints whose
            JSON types differ; a `TypedDict`, which allows further keys; or a class, for the arguments of its `__init__`.
        source: File that holds the value, for the message.
        advice: Last sentence of the message, as `Download it again`.
    """

    def checked(value: Any, hint: Any, at: str) -> Any:
        part = next((part for part in _parts(hint) if _fits(value, part)), None)
        if part is None:
            raise error(f"{source}{at and f': {at}'} must be {_expected(hint)}, found {shown(value)}. {advice}")
        kind, inner = get_origin(part) or part, get_args(part)
        if kind is list and inner:
            return [checked(item, inner[0], f"{at}[{i}]") for i, item in enumerate(value)]
        if kind is dict and inner:
            return {key: checked(item, inner[1], _under(at, key)) for key, item in value.items()}
        if kind in _NAMES or kind in (Any, Literal):
            return value
        hints, needed = _keys(kind)
        given = {
            key: item
            for key, item in value.items()
            if item is not None or {Any, types.NoneType} & {*_parts(hints.get(key, Any))}
        }
        if missing := [key for key in hints if key in needed and key not in given]:
            raise error(f"{source}: {_under(at, missing[0])} is missing, {_expected(hints[missing[0]])}. {advice}")
        if unknown := [key for key in given if key not in hints and not is_typeddict(kind)]:
            raise error(f"{source}: {_under(at, unknown[0])} is unknown; known: {', '.join(hints) or 'none'}. {advice}")
        return {key: checked(item, hints.get(key, Any), _under(at, key)) for key, item in given.items()}

    return checked(value, schema, "")


def shown(value: Any) -> str:
    """Return a JSON value, shortened."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else _SHORT.repr(value)


def _parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, part: Any) -> bool:
    """Return whether a value has the JSON type of a hint; the content of a list or an object is not checked."""
    kind = get_origin(part) or part
    if kind is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(part))
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max  # False for NaN
    fits = kind is Any or type(value) is (kind if kind in _NAMES else dict)
    return fits and not (kind is int and abs(value) >= 2**63)


def _keys(schema: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the hints of an object's keys, and the keys that it must have."""
    if is_typeddict(schema):
        return get_type_hints(schema), schema.__required_keys__
    parameters, hints = inspect.signature(schema).parameters, get_type_hints(schema.__init__)
    return {name: hints[name] for name in parameters}, frozenset(n for n, p in parameters.items() if p.default is p.empty)


def _expected(hint: Any) -> str:
    choices = [get_args(part) if get_origin(part) is Literal else () for part in _parts(hint)]
    names = [_NAMES.get(get_origin(part) or part, "an object") for part in _parts(hint)]
    return " or ".join(", ".join(map(shown, some)) or name for some, name in zip(choices, names, strict=True))


def _under(at: str, key: str) -> str:
    name = key if re.fullmatch(r"[\w<>|/-]{1,60}", key) else shown(key)
    return f"{at}.{name}" if at else name
