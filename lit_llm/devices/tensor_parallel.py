"""Tensor parallel inference (https://arxiv.org/abs/1909.08053, section 3): each rank has some of the heads and of the hidden
features of every MLP. All ranks draw the same tokens.

With two ranks, attention is o(heads) = o_1(heads_1) + o_2(heads_2), and so is the MLP: one sum over the ranks for each of them.
"""

import os
from dataclasses import replace

import torch
import torch.distributed as dist

from lit_llm.errors import OptionError
from lit_llm.model.config import Config
from lit_llm.model.gpt import GPT
from lit_llm.ranks import BACKENDS, n_started, start_others


def why_not_split(config: Config, n_devices: int, quantize: str | None, has_adapter: bool) -> str | None:
    """Return why linears cannot be split over that many devices; None if they can."""
    if quantize is not None:
        return "`quantize` leaves no plain linears"
    if has_adapter:
        return "an adapter is attached to the linears; scripts/merge_lora.py merges LoRA"
    if config.keeps_state:
        return "the model has layers without attention"
    if config.n_expert or config.qk_norm in ("row", "heads", "each_head"):
        return "the model has experts, or norms over all heads"
    if config.n_query_groups % n_devices or config.intermediate_size % n_devices:
        sizes = f"{config.n_query_groups} key/value heads and {config.intermediate_size} features"
        return f"{sizes} are not both divisible by {n_devices}"
    return None


def join(n_devices: int, device: torch.device) -> torch.device:
    """Start the other processes, unless torchrun has, connect them, and return the device of this one.

    Raises:
        OptionError: if another number of processes was started.
    """
    n_found = n_started()
    if n_found is None:
        start_others(n_devices)
    elif n_found != n_devices:
        raise OptionError(f"{n_found} processes were started, but `devices` is {n_devices}")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group(BACKENDS[device.type])
    return device


def split(model: GPT, device: torch.device) -> None:
    """Keep this rank's part of a model on the CPU, and move it to `device`. Each rank has all embeddings and norms."""
    from torch.distributed.device_mesh import init_device_mesh  # takes a second, which one device need not wait
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

    n = dist.get_world_size()
    mesh = init_device_mesh(device.type, (n,))
    columns, rows = ColwiseParallel(), RowwiseParallel()  # split by outputs; by inputs, with a sum over the ranks
    plan: dict[str, ParallelStyle] = {
        "attn.q": columns, "attn.k": columns, "attn.v": columns, "attn.o": rows, "mlp.gate": columns, "mlp.up": columns,
        "mlp.down": rows, "attn.q_up": columns, "attn.kv_up": columns,
    }  # fmt: skip
    for block in model.h:
        linears = {name for name, _ in block.named_modules()}
        parallelize_module(block, mesh, {n: style for n, style in plan.items() if n in linears}, src_data_rank=None)
    if not model.config.tie_embeddings:
        parallelize_module(model.lm_head, mesh, ColwiseParallel(output_layouts=Replicate()), src_data_rank=None)
    model.config = replace(model.config, n_head=model.config.n_head // n, n_query_groups=model.config.n_query_groups // n)
    model.to(device)
    if model.alibi is not None:
        model.alibi.slopes = model.alibi.slopes.chunk(n)[dist.get_rank()]
    for computed in (model.rope, model.local_rope, model.alibi):
        if computed is not None:
            computed.to(device)
