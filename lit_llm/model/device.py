"""Device and dtype of the weights."""

import torch


def resolve_device(device: str) -> torch.device:
    """Return the device of this name; `auto` is the first of CUDA, MPS and CPU that is available."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


_DTYPES = {"32-true": torch.float32, "16-true": torch.float16, "bf16-true": torch.bfloat16}


def weights_dtype(precision: str | None, device: torch.device) -> torch.dtype | None:
    """Return the dtype of frozen weights; None keeps the checkpoint's own. The `*-mixed` precisions keep float32."""
    if precision is None:
        return torch.float32 if device.type == "cpu" else None
    return _DTYPES.get(precision, torch.float32)
