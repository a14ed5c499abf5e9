"""A measurement in a process of its own: the memory of one that has done other things says little."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

MEASURING = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment in which glibc gives freed memory back at once, so that resident memory is memory in use."""


def in_new_process(function: Callable[..., Any], *arguments: str | int) -> Any:
    """What a function of a module returns, as JSON carries it, when a fresh process with one thread calls it."""
    name = function.__name__
    lines = [
        "import json, torch", "torch.set_num_threads(1)", f"from {function.__module__} import {name}",
        f"print(json.dumps({name}(*{arguments!r})))",
    ]  # fmt: skip
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, env=MEASURING, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])
