"""What all options share: their types, and rules that are checked together."""

import math
from dataclasses import dataclass
from typing import Literal

Precision = Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"]
Quantization = Literal["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8"]
CpuWeights = Literal["fp16", "int8"]
Optimizer = Literal[
    "adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit", "lion", "lion8bit", "paged_lion", "paged_lion8bit", "sgd",
    "adafactor",
]  # fmt: skip
Accelerator = Literal["auto", "cpu", "cuda", "mps"]
InferenceStrategy = Literal["auto", "tensor", "layers"]


@dataclass(frozen=True)
class Checked:
    """Collects the mistakes of a dataclass and raises them together."""

    def __post_init__(self) -> None:
        if mistakes := [text for wrong, text in self.rules() if wrong]:
            raise ValueError("\n".join(mistakes))

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
            found.append((wrong, f"--{group}{name} must be {word} {limit}, found {value}"))
            found.append((value == math.inf, f"--{group}{name} must be finite, found {value}"))
        return found
