"""Parts that the checks share: CPU-seconds, processes of their own, and reports."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

import torch

from lit_llm.errors import OptionError
from lit_llm.files import json_text

T = TypeVar("T")

GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment in which glibc returns freed memory at once, so that resident memory is memory in use."""


def cpu_seconds(call: Callable[..., Any], *arguments: Any) -> float:
    """Return the CPU-seconds that a call takes, over all threads of this process."""
    start = time.process_time()
    call(*arguments)
    return time.process_time() - start


def in_turn(runs: Mapping[str, Callable[[], T]], repetitions: int) -> dict[str, list[T]]:
    """Return what each run returns in every repetition. They take turns, so that other load on the machine slows all alike."""
    found: dict[str, list[T]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            found[name].append(run())
    return found


def in_new_process(function: Callable[..., Any], *arguments: str | int, as_user: bool = False) -> Any:
    """Call a function of a module in a fresh process and return its result, which must fit into JSON.

    The memory of a process that did other work before says little.

    Args:
        as_user: Use the threads and the memory allocator of a user, not one thread and an allocator that returns freed memory.
    """
    name = function.__name__
    lines = [f"from {function.__module__} import {name}", f"print(json.dumps({name}(*{arguments!r})))"]
    if not as_user:
        lines.insert(0, "torch.set_num_threads(1)")
    command = [sys.executable, "-c", "\n".join(["import json, torch", *lines])]
    environment = os.environ if as_user else {**os.environ, **GIVES_BACK}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def require_linux(check: str) -> None:
    """Raise OptionError on other systems."""
    if sys.platform != "linux":
        raise OptionError(f"`check` {check} reads /proc, which only Linux has. Run it on Linux")


def machine() -> dict[str, str]:
    """Return the versions and the processor that the figures of every check depend on."""
    return {"torch": torch.__version__, "python": platform.python_version(), "processor": _processor()}


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.processor())


def summary(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Return the median under `name`, and the lowest and the highest value as `spread`."""
    return {name: median(values), "spread": [min(values), max(values)]}


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the ratio of each pair of values, which were measured directly one after the other."""
    return [value / other for value, other in zip(values, others, strict=True)]


def table(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a Markdown table. `columns` maps titles to formats, such as `{seconds:.1f} s`, which are filled from each row."""
    lines = [list(columns), ["---"] * len(columns), *([cell.format_map(row) for cell in columns.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def report(results: dict[str, Any], shown: str = "") -> None:
    """Print results as JSON on stdout, and a table on stderr."""
    print(json_text(results, indent=2))
    if shown:
        print(f"\n{shown}", file=sys.stderr)
