"""Types that options share, and rules that are checked together."""

import errno
import math
import operator
import os
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from lit_llm.errors import OptionError

Precision = Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"]
Quantization = Literal["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8"]
CpuWeights = Literal["fp16", "int8"]
Optimizer = Literal[
    "adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit", "lion", "lion8bit", "paged_lion", "paged_lion8bit", "sgd",
    "adafactor",
]  # fmt: skip
Accelerator = Literal["auto", "cpu", "cuda", "mps"]
InferenceStrategy = Literal["auto", "tensor", "layers"]

MIN_TEMPERATURE = 1e-4  # except 0
PENALTIES = 0.01, 100.0

Rules = list[tuple[bool, str]]
"""Pairs of (is it violated, message)."""

_BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "above": operator.gt,
    "at_least": operator.ge,
    "below": operator.lt,
    "at_most": operator.le,
}


def bounds(settings: Any, *names: str, **limits: float) -> Rules:
    """Rules that each named field is None, or finite and within all limits: above, at_least, below, at_most."""
    expected = " and ".join(f"{word.replace('_', ' ')} {limit}" for word, limit in limits.items())
    rules = []
    for name in names:
        value = getattr(settings, name, None)
        if value is not None:
            within = all(_BOUNDS[word](value, limit) for word, limit in limits.items())  # False for NaN
            wrong = "finite" if within else expected
            rules.append((not within or value == math.inf, f"`{name}` must be {wrong}, found {value}"))
    return rules


def sampling_rules(settings: Any) -> Rules:
    """Rules for the settings of sampling that an object has: its options, or those of a request."""
    temperature, (low, high) = settings.temperature, PENALTIES
    return [
        (
            not (temperature == 0 or MIN_TEMPERATURE <= temperature < math.inf),  # True for NaN
            f"`temperature` must be 0 or at least {MIN_TEMPERATURE}, found {temperature}",
        ),
        *bounds(settings, "top_k", above=0),
        *bounds(settings, "top_p", above=0, at_most=1),
        *bounds(settings, "min_p", at_least=0, at_most=1),
        *bounds(settings, "repetition_penalty", at_least=low, at_most=high),
    ]


def template_rules(settings: Any) -> Rules:
    """Rules for the variables of the chat template."""
    wrong = [name for name in ("messages", "add_generation_prompt") if name in (settings.template_kwargs or {})]
    return [(bool(wrong), f"`template_kwargs` cannot set {' and '.join(wrong)}")]


@dataclass(frozen=True)
class Checked:
    """Base class of all options. Accepts strings as paths, and raises all mistakes of a dataclass as one OptionError."""

    def __init_subclass__(cls) -> None:
        cls.__doc__ = cls.__doc__ or cls.__base__.__doc__  # the title of the options in `--help`

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.type is Path or Path in get_args(f.type):
                object.__setattr__(self, f.name, as_path(f.name, getattr(self, f.name)))
        if mistakes := [message for wrong, message in self.rules() if wrong]:
            raise OptionError("\n".join(mistakes))

    def rules(self) -> Rules:
        """Return the rules of these options."""
        return []

    def changed(self, name: str) -> bool:
        """Return whether an option differs from its default."""
        f = next(f for f in fields(self) if f.name == name)
        return getattr(self, name) != (f.default if f.default_factory is MISSING else f.default_factory())

    def needs(self, other: str, *names: str) -> Rules:
        """Rules that the named options are at their defaults as long as `other` is None or False."""
        lacking = getattr(self, other) in (None, False)
        return [(lacking and self.changed(name), f"`{name}` needs `{other}`") for name in names]

    def excludes(self, name: str, *others: str) -> Rules:
        """Rule that `name` or all `others` are at their defaults."""
        clashing = ", ".join(f"`{other}`" for other in others if self.changed(other))
        message = f"`{name}` cannot be combined with {clashing}. Omit one of them"
        return [(self.changed(name) and bool(clashing), message)]


def as_path(name: str, value: Any) -> Any:
    """Return strings as paths. Raise OptionError, which names the option, for one that the system does not accept."""
    if isinstance(value, list):
        return [as_path(name, item) for item in value]
    if not isinstance(value, (str, Path)):
        return value
    try:
        os.stat(value)
    except ValueError as error:  # a null character
        raise OptionError(f"`{name}` {str(value)!r} is not a path: {error}") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise OptionError(f"`{name}` {str(value)[:100]} is not a path: {os.strerror(error.errno)}") from error
    return Path(value)
