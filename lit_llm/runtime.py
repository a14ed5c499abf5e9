"""Where and in which precision a run computes: Fabric, and which combinations are allowed."""

import warnings

import torch
from lightning.fabric import Fabric

from lit_llm.args.finetune import FinetuneArgs


def resolve_precision(precision: str | None, device: torch.device) -> str:
    """The precision asked for, or the best of the device: bfloat16 on CUDA that has it, else float32."""
    if precision is None:
        return "bf16-true" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if precision.startswith("bf16") and device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        warnings.warn(
            f"--precision {precision}: this CPU has no bfloat16 units, which makes it about 30 times slower than 32-true",
            stacklevel=2,
        )
    return precision


def make_fabric(args: FinetuneArgs, device: torch.device, precision: str, trains_base: bool) -> Fabric:
    """Fabric that never casts weights.

    Frozen weights are loaded in the dtype of a `*-true` precision by us, while trained ones stay float32: Fabric's own
    `bf16-true` would cast both, and bfloat16 loses small updates. A method that trains the base's own weights then needs
    autocast to multiply them in bfloat16.
    """
    if precision == "bf16-true" and trains_base:
        precision = "bf16-mixed"
    return Fabric(
        accelerator=device.type,
        devices=args.devices,
        precision=precision if precision.endswith("-mixed") else "32-true",  # type: ignore[arg-type]
    )
