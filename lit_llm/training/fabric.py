"""Devices and precision of a run: Fabric, and the combinations that are allowed."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from lit_llm.args.finetune import FinetuneArgs
from lit_llm.data.mixture import sources_of
from lit_llm.data.prepare import names_rows
from lit_llm.devices.fsdp import shard
from lit_llm.errors import OptionError
from lit_llm.estimation.step_memory import STATE_BYTES
from lit_llm.model.device import weights_dtype
from lit_llm.ranks import BACKENDS, n_started, start_others, started_elsewhere

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from lightning.fabric.loggers.logger import Logger
    from lightning.fabric.strategies.ddp import DDPStrategy
    from lightning.fabric.strategies.model_parallel import ModelParallelStrategy

Strategy = Literal["one", "ddp", "fsdp"]


def resolve_precision(precision: str | None, device: torch.device) -> str:
    """Return the requested precision, or the best of the device: bfloat16 on CUDA that has it, else float32."""
    if precision is None:
        return "bf16-true" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if precision.startswith("bf16") and device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        warnings.warn(
            f"`precision` {precision}: this CPU has no bfloat16 units, which makes it about 30 times slower than 32-true",
            stacklevel=2,
        )
    return precision


def check_devices(args: FinetuneArgs, device: torch.device) -> None:
    """Raise OptionError if the run cannot have its devices. Nothing is started yet."""
    n_devices, n_found = args.devices * args.num_nodes, n_started()
    if device.type == "mps" and n_devices > 1:
        raise OptionError(f"`devices` is {args.devices}, but MPS is one device. Omit it")
    if device.type == "cuda" and args.devices > torch.cuda.device_count():
        raise OptionError(f"`devices` is {args.devices}, but this machine has {torch.cuda.device_count()} CUDA devices")
    if n_found is not None and n_found != n_devices:
        raise OptionError(
            f"{n_found} processes were started, but `devices` {args.devices} on `num_nodes` {args.num_nodes} need {n_devices}"
        )
    if n_found is None and args.num_nodes > 1:
        raise OptionError(f"`num_nodes` {args.num_nodes} needs torchrun or srun on every node; see tutorials/cluster.md")
    if (
        started_elsewhere()
        and args.data_dir is not None
        and any(names_rows(source.path) for source in sources_of(args.data_dir))
    ):
        raise OptionError(
            f"`data_dir` {args.data_dir} names rows, which all processes would prepare at once. Prepare it first: "
            "python scripts/prepare_csv.py or prepare_json.py"
        )


def choose_strategy(args: FinetuneArgs, device: torch.device, n_weights: int, trains_base: bool) -> tuple[Strategy, str]:
    """Choose how several devices share the work, and return the choice with its reason.

    Raises:
        OptionError: if the requested strategy does not support other requested options.
    """
    n_devices = args.devices * args.num_nodes
    if n_devices == 1:
        if args.strategy != "auto":
            raise OptionError(f"`strategy` {args.strategy} needs `devices` above 1")
        return "one", "one device"
    if args.strategy == "fsdp":
        for wrong, why in (
            (args.quantize == "bnb.int8", "`quantize` bnb.int8 is not sharded. Use `strategy` ddp, or bnb.nf4"),
            (args.precision == "16-mixed", "`precision` 16-mixed is not supported. Use bf16-mixed"),
            (args.train.compile, "`train.compile` is not supported. Omit it, or use `strategy` ddp"),
            (
                args.train.optimizer not in ("adamw", "sgd"),
                f"`train.optimizer` {args.train.optimizer} is not supported. Use adamw or sgd",
            ),
            (args.cpu_offload and device.type != "cuda", "`cpu_offload` is for GPUs. Omit it"),
            (
                args.cpu_offload and args.quantize is not None,
                "`cpu_offload` and `quantize` exclude each other. Omit one of them",
            ),
        ):
            if wrong:
                raise OptionError(f"`strategy` fsdp: {why}")
    if args.strategy != "auto":
        return args.strategy, f"{args.strategy}, as requested"
    if args.quantize is not None:
        return "ddp", f"ddp, since a base in {args.quantize} is small"
    width = 2 if args.precision == "bf16-true" else 4
    each = 4 + 4 + STATE_BYTES[args.train.optimizer] if trains_base else width  # master, gradient, optimizer
    held, memory = n_weights * each / 1e9, _memory_gb(device, args.devices)
    sizes = f"weights, gradients and optimizer of the base take {held:.2f} GB of the {memory:.1f} GB of a device"
    if held < memory / 2:
        return "ddp", f"ddp, since {sizes}, less than half"
    if args.train.optimizer not in ("adamw", "sgd") or args.precision == "16-mixed" or args.train.compile:
        return "ddp", f"ddp, though {sizes}: fsdp does not support the optimizer, the precision or `train.compile`"
    return "fsdp", f"fsdp, since {sizes}, half or more"


def _memory_gb(device: torch.device, n_devices: int) -> float:
    """Return the memory of a GPU, or a process's share of the machine's, in GB."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(0).total_memory / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / n_devices / 1e9


def launch(
    args: FinetuneArgs, strategy: Strategy, device: torch.device, trains_base: bool, loggers: "Sequence[Logger]" = ()
) -> "Fabric":
    """Return a Fabric that never casts weights, and start the other processes of this machine.

    Frozen weights are loaded in the dtype of a `*-true` precision by us, while trained ones stay float32: Fabric's own
    `bf16-true` would cast both, and bfloat16 loses small updates. A method that trains the base's own weights then needs
    autocast to multiply them in bfloat16.
    """
    from lightning.fabric import Fabric

    assert args.precision is not None
    precision = "bf16-mixed" if args.precision == "bf16-true" and trains_base else args.precision
    fabric = Fabric(
        accelerator=device.type,
        devices=args.devices,
        num_nodes=args.num_nodes,
        strategy=_STRATEGIES[strategy](args, device, precision),
        precision=precision if precision.endswith("-mixed") else "32-true",  # type: ignore[arg-type]
        loggers=list(loggers),
    )
    if args.devices > 1 and n_started() is None:
        start_others(args.devices)
    fabric.launch()
    return fabric


def _ddp(args: FinetuneArgs, device: torch.device, precision: str) -> "DDPStrategy":
    """All ranks have read the same weights and drawn the same adapter: sending them would copy the mapped file."""
    from lightning.fabric.strategies.ddp import DDPStrategy

    return DDPStrategy(process_group_backend=BACKENDS[device.type], init_sync=False, gradient_as_bucket_view=True)


def _fsdp(args: FinetuneArgs, device: torch.device, precision: str) -> "ModelParallelStrategy":
    from lightning.fabric.strategies.model_parallel import ModelParallelStrategy

    multiplied = torch.bfloat16 if precision == "bf16-mixed" and args.quantize is None else None

    def parallelize(objective: nn.Module, mesh: Any) -> nn.Module:
        shard(objective.gpt, mesh["data_parallel"], dtype, multiplied, args.cpu_offload)  # type: ignore[arg-type]
        return objective

    dtype = weights_dtype(args.precision, device)
    n_devices = args.devices * args.num_nodes
    return ModelParallelStrategy(parallelize, n_devices, 1, process_group_backend=BACKENDS[device.type])


_STRATEGIES: dict[Strategy, Callable[[FinetuneArgs, torch.device, str], Any]] = {
    "one": lambda *_: "auto",
    "ddp": _ddp,
    "fsdp": _fsdp,
}
