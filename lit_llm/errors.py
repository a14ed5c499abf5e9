"""Errors that a user can fix.

A message names the mistake and the next step. Arguments are in backticks, `quantize` or `train.optimizer`; the command line
prints those of the running script as flags.
"""

import re
from collections.abc import Container

# A MemoryError of Python is one class of many: PyTorch has its own for CUDA, a RuntimeError on a CPU, and the system's texts.
_NO_MEMORY = re.compile(
    "can't allocate memory|annot allocate memory|not enough memory|out of memory|bad_alloc|failed to map segment"
    "|can't start new thread"
)


class LitError(ValueError):
    """Base class of the errors that a user can fix."""


class DataError(LitError):
    """Training or evaluation data that cannot be used."""


class CheckpointError(LitError):
    """A checkpoint, adapter or saved run that cannot be used."""


class OptionError(LitError):
    """An argument, or a combination of arguments, that cannot be used."""


class OutOfMemory(LitError):  # noqa: N818
    """A step that does not fit into the memory of the device."""


def brief(error: BaseException) -> str:
    """Return the first line of a library's message, shortened; it may quote from a file."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line if len(line) <= 200 else f"{line[:200]}..."


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on any device."""
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def with_flags(message: str, options: Container[str], group: str = "") -> str:
    """Write `name` in a message as --name, or as --group.name, for every name in `options`."""
    return re.sub(r"`([a-z_][\w.]*)`", lambda m: f"--{group}{m[1]}" if m[1] in options else m[0], message)
