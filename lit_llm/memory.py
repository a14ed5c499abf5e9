"""Memory of this process and its device: in use, peak, available, and errors when it runs out."""

import ctypes
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak in GB (10^9 bytes) of memory allocated on the CUDA device, or resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "linux":  # ru_maxrss includes the program that started this one
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def available_bytes(device: torch.device) -> int | None:
    """Return the free memory of the CUDA device, or of this machine; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if sys.platform != "linux":
        return None
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def peak_above(step: Callable[[], object], device: torch.device) -> float:
    """Return the GB by which memory in use grows at most while `step()` runs; on a CPU, memory of the process.

    The peak is reset first. Only Linux can do this on a CPU; elsewhere, growth counts from an earlier peak.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device) / 1e9
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        before = _resident()
        Path("/proc/self/clear_refs").write_text("5")
    else:
        before = peak_memory_gb(device)
    step()
    return peak_memory_gb(device) - before


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


def give_back() -> None:
    """Return freed memory to the system where glibc allocates: the holes that temporary tensors leave between weights.

    See malloc_trim(3). Without it the peak of quantizing a model while loading was up to 1.5 times its weights.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
