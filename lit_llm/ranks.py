"""Ranks, the processes of a run: how they start, what they exchange, and what happens when one is lost.

In a run of one process every function here returns at once, without communication.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from lit_llm.cli import environment_rank
from lit_llm.files import claimed, new_folder

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""By device type. Ranks make joint decisions with numbers on the CPU, so that they need not wait for a GPU."""

GRACE_SECONDS = 30
"""Time until a process that waits for a lost one, or still computes, is ended."""

_children: list[subprocess.Popen[bytes]] = []  # ranks 1 and up of this machine, if this program started them


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def n_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def n_started() -> int | None:
    """Return the number of processes that torchrun, srun (SLURM) or `start_others` started; None if none of them did."""
    if "LOCAL_RANK" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    n_tasks = int(os.environ.get("SLURM_NTASKS", 1))
    return n_tasks if n_tasks > 1 else None


def started_elsewhere() -> bool:
    """Return True if torchrun or srun started this process, so that no rank existed before the others."""
    return n_started() is not None and ("TORCHELASTIC_RUN_ID" in os.environ or "LOCAL_RANK" not in os.environ)


def start_others(n_processes: int) -> None:
    """Start this program again for the other devices of this machine. Environment variables connect the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n_processes)}
    for i in range(n_processes):
        environment = {**common, "LOCAL_RANK": str(i), "RANK": str(i)}
        if i == 0:
            os.environ.update(environment)
        else:
            _children.append(subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env={**os.environ, **environment}))
    atexit.register(_end_children)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    """End this process too after a child is lost. It may compute for long before communication fails."""
    while not any(child.poll() for child in _children):
        time.sleep(0.5)
    time.sleep(GRACE_SECONDS)
    print(f"error: {_who_was_lost()}", file=sys.__stderr__, flush=True)
    for child in _children:
        child.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def _end_children() -> None:
    """Wait for the other ranks at the end of the program."""
    end = time.monotonic() + GRACE_SECONDS
    for child in _children:
        try:
            child.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            child.kill()


def _who_was_lost() -> str:
    for i, child in enumerate(_children, 1):
        if (code := child.poll()) is not None:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return f"the process of rank {i} {how}"
    return "another process of this run ended"


@contextmanager
def naming_lost_ranks(advice: str) -> Iterator[None]:
    """Turn a broken connection to another rank into an error that names the lost rank and ends with `advice`.

    Raises:
        ConnectionError: if another process of the run ended.
    """
    try:
        yield
    except RuntimeError as error:
        broken = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "NCCL", "TCPStore")
        if n_ranks() == 1 or not any(text in str(error) for text in broken):
            raise
        end = time.monotonic() + 2
        while _children and time.monotonic() < end and all(child.poll() is None for child in _children):
            time.sleep(0.05)  # the connection breaks a moment before the process ends
        raise ConnectionError(f"{_who_was_lost()}, and this one cannot continue without it. {advice}") from error


def total(value: Tensor) -> Tensor:
    """Return the sum over all ranks."""
    if n_ranks() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def own_rows(n: int) -> slice:
    """Return the share of `n` rows that this rank works on. Shares are even, and in the order of the ranks."""
    return slice(n * rank() // n_ranks(), n * (rank() + 1) // n_ranks())


def whole_rows(part: Tensor, n: int) -> Tensor:
    """Return (n, ...), assembled from the `own_rows` (rows, ...) of each rank."""
    rows = part.new_zeros(n, *part.shape[1:])
    rows[own_rows(n)] = part
    return total(rows)


def largest(*values: float) -> list[float]:
    """Return the maximum of each number over all ranks, so that all make the same decision from it."""
    if n_ranks() == 1:
        return list(values)
    numbers = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return numbers.tolist()


def of_all(value: Tensor) -> list[Tensor]:
    """Return the tensor of every rank. They are on the CPU, and all have the same shape."""
    if n_ranks() == 1:
        return [value]
    found = [torch.empty_like(value) for _ in range(n_ranks())]
    dist.all_gather(found, value)
    return found


@contextmanager
def claimed_for_all(path: Path | None, option: str, in_place: bool = False) -> Iterator[None]:
    """Claim `path`, if there is one, on rank 0, before the ranks are connected: see `lit_llm.files.claimed`."""
    if path is None or environment_rank() > 0:
        yield
    else:
        with claimed(path, option, in_place):
            yield


@contextmanager
def shared_folder(target: Path) -> Iterator[Path | None]:
    """Yield `new_folder` on rank 0, and None on the others, which continue when it is complete."""
    if rank() == 0:
        with new_folder(target) as folder:
            yield folder
    else:
        yield None
    largest(0)
