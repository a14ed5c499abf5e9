"""Device and dtype of the weights."""

import torch

from lit_llm.errors import OptionError


def resolve_device(device: str) -> torch.device:
    """Return the device of this name; `auto` is the first of CUDA, MPS and CPU that is available.

    Raises:
        OptionError: if this machine, or this build of PyTorch, does not have it.
    """
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(kind for kind, is_available in kinds.items() if is_available))
    found = torch.device(device)
    if not kinds.get(found.type, True):
        build = f"PyTorch {torch.__version__} finds no {found.type.upper()} device"
        raise OptionError(f"the device {device} is not available here: {build}. Use `accelerator` auto or cpu")
    return found


def check_compiler(device: torch.device, option: str) -> None:
    """Raise OptionError, which names `option`, unless torch.compile works for a device. Takes seconds."""
    from torch._inductor import config

    try:
        with config.patch(force_disable_caches=True):  # a cached result would not need the compiler
            torch.compile(lambda x: (x + 1).relu())(torch.zeros(8, device=device))
    except Exception as error:  # a missing compiler, Triton or header: each backend raises its own errors
        needed = "a C++ compiler" if device.type == "cpu" else "Triton and a C compiler"
        reason = str(error).strip().splitlines()[0]
        raise OptionError(
            f"`{option}`: torch.compile does not work here on {device.type} ({reason}). Install {needed}, or omit it"
        ) from error


_DTYPES = {"32-true": torch.float32, "16-true": torch.float16, "bf16-true": torch.bfloat16}


def weights_dtype(precision: str | None, device: torch.device) -> torch.dtype | None:
    """Return the dtype of frozen weights; None keeps the checkpoint's own. The `*-mixed` precisions keep float32."""
    if precision is None:
        return torch.float32 if device.type == "cpu" else None
    return _DTYPES.get(precision, torch.float32)
