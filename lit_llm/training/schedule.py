"""The length of a run and the learning rate along it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lit_llm.args.finetune import TrainArgs
from lit_llm.errors import OptionError
from lit_llm.training.saves import State

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Schedule:
    """Length of a run and the learning rate along it."""

    learning_rate: float
    min_lr: float
    warmup_steps: int
    total_steps: int | None
    """None where only `max_seconds` ends the run."""
    max_seconds: float
    warmup_seconds: float = math.inf
    """The warmup ends here if `warmup_steps` are not made by then."""

    @classmethod
    def from_args(cls, args: TrainArgs, steps_per_epoch: int) -> "Schedule":
        """Raises ValueError if a given warmup reaches the end of the run."""
        epochs = 1 if args.epochs is None and args.max_steps is None and args.max_time is None else args.epochs
        limits = [steps for steps in (args.max_steps, epochs and epochs * steps_per_epoch) if steps is not None]
        total = min(limits) if limits else None
        seconds = math.inf if args.max_time is None else args.max_time * 3600
        warmup, warmup_seconds = args.lr_warmup_steps, math.inf
        if warmup is None and total is None:
            warmup, warmup_seconds = 100, 0.1 * seconds
        elif warmup is None:
            assert total is not None
            warmup = min(100, total // 10)
        elif total is not None and warmup >= total:
            raise OptionError(f"`train.lr_warmup_steps` {warmup} reaches the end of the run, which has {total} steps")
        min_lr = 0.1 * args.learning_rate if args.min_lr is None else args.min_lr
        return cls(args.learning_rate, min_lr, warmup, total, seconds, warmup_seconds)

    def at(self, step: int, seconds: float) -> float:
        """Learning rate of a step (0 is the first), `seconds` into the run.

        Linear warmup from above 0, then a cosine (https://arxiv.org/abs/1608.03983, eq. 5) to `min_lr` at the last step; over
        the time, where only that is limited.
        """
        warm = max((step + 1) / (self.warmup_steps + 1), seconds / self.warmup_seconds)
        if warm < 1:
            return self.learning_rate * warm
        if self.total_steps is None:
            done = min(seconds / self.max_seconds, 1.0)
        else:
            done = (step - self.warmup_steps) / max(self.total_steps - 1 - self.warmup_steps, 1)
        return self.min_lr + (self.learning_rate - self.min_lr) * 0.5 * (1 + math.cos(math.pi * done))

    def ended(self, state: State) -> bool:
        steps_over = self.total_steps is not None and state.step >= self.total_steps
        return steps_over or state.seconds >= self.max_seconds
