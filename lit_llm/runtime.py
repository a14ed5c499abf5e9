"""Where and in which precision a run computes: Fabric, and which combinations are allowed."""

import warnings
from collections.abc import Sequence

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.strategies.ddp import DDPStrategy

from lit_llm.args.finetune import FinetuneArgs
from lit_llm.distributed import BACKENDS, n_started, start_others, started_elsewhere


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


def check_devices(args: FinetuneArgs, device: torch.device) -> None:
    """Raises ValueError if the run cannot have its devices; nothing is started yet."""
    n_devices, n_found = args.devices * args.num_nodes, n_started()
    if device.type == "mps" and n_devices > 1:
        raise ValueError(f"--devices {args.devices}: MPS is one device. Leave it out")
    if device.type == "cuda" and args.devices > torch.cuda.device_count():
        raise ValueError(f"--devices {args.devices}: this machine has {torch.cuda.device_count()} CUDA devices")
    if n_found is not None and n_found != n_devices:
        raise ValueError(
            f"{n_found} processes were started, but --devices {args.devices} on --num_nodes {args.num_nodes} need {n_devices}"
        )
    if n_found is None and args.num_nodes > 1:
        raise ValueError(f"--num_nodes {args.num_nodes} needs torchrun or srun on every node; see tutorials/cluster.md")
    if started_elsewhere() and args.data_dir is not None and args.data_dir.is_file():
        raise ValueError(
            f"--data_dir {args.data_dir} is a file, which all processes would prepare at once. Prepare it first: "
            "python scripts/prepare_csv.py or prepare_json.py"
        )


def launch(
    args: FinetuneArgs, device: torch.device, precision: str, trains_base: bool, loggers: Sequence[Logger] = ()
) -> Fabric:
    """Fabric that never casts weights, on all devices: the other processes of this machine are started here.

    Frozen weights are loaded in the dtype of a `*-true` precision by us, while trained ones stay float32: Fabric's own
    `bf16-true` would cast both, and bfloat16 loses small updates. A method that trains the base's own weights then needs
    autocast to multiply them in bfloat16.
    """
    if precision == "bf16-true" and trains_base:
        precision = "bf16-mixed"
    fabric = Fabric(
        accelerator=device.type,
        devices=args.devices,
        num_nodes=args.num_nodes,
        strategy=_ddp(device) if args.devices * args.num_nodes > 1 else "auto",
        precision=precision if precision.endswith("-mixed") else "32-true",  # type: ignore[arg-type]
        loggers=list(loggers),
    )
    if args.devices > 1 and n_started() is None:
        start_others(args.devices)
    fabric.launch()
    return fabric


def _ddp(device: torch.device) -> DDPStrategy:
    """All ranks have read the same weights and drawn the same adapter: to send them would copy what lies in a mapped file."""
    return DDPStrategy(process_group_backend=BACKENDS[device.type], init_sync=False, gradient_as_bucket_view=True)
