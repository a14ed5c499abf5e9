"""What all options share: their types, and rules that are checked together."""

import math
from dataclasses import dataclass
from typing import Any, Literal

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

MIN_TEMPERATURE = 1e-4  # but for 0
PENALTIES = 0.01, 100.0


def sampling_rules(settings: Any) -> list[tuple[bool, str]]:
    """Rules as of `Checked` for how a token is drawn, of options or of what has some of their names."""
    temperature, top_k = settings.temperature, settings.top_k
    min_p, penalty = (getattr(settings, name, default) for name, default in (("min_p", 0.0), ("repetition_penalty", 1.0)))
    low, high = PENALTIES
    return [  # NaN is wrong everywhere
        (
            not (temperature == 0 or MIN_TEMPERATURE <= temperature < math.inf),
            f"`temperature` must be 0 or at least {MIN_TEMPERATURE}, found {temperature}",
        ),
        (top_k is not None and not top_k > 0, f"`top_k` must be above 0, found {top_k}"),
        (not 0 < settings.top_p <= 1, f"`top_p` must be above 0 and at most 1, found {settings.top_p}"),
        (not 0 <= min_p <= 1, f"`min_p` must be from 0 to 1, found {min_p}"),
        (not low <= penalty <= high, f"`repetition_penalty` must be from {low} to {high}, found {penalty}"),
    ]


@dataclass(frozen=True)
class Checked:
    """Collects the mistakes of a dataclass and raises them together."""

    def __post_init__(self) -> None:
        if mistakes := [text for wrong, text in self.rules() if wrong]:
            raise OptionError("\n".join(mistakes))

    def rules(self) -> list[tuple[bool, str]]:
        """(whether it is wrong, what to tell the user), for each rule."""
        raise NotImplementedError

    def below(self, limit: float, *names: str, group: str = "", allow_equal: bool = False) -> list[tuple[bool, str]]:
        """Rules: each named field, where given, must be finite and above `limit`, or equal to it if allowed."""
        word = "at least" if allow_equal else "above"
        found = []
        for name in names:
            value = getattr(self, name)
            wrong = value is not None and not (value >= limit if allow_equal else value > limit)  # NaN is wrong too
            found.append((wrong, f"`{group}{name}` must be {word} {limit}, found {value}"))
            found.append((value == math.inf, f"`{group}{name}` must be finite, found {value}"))
        return found
