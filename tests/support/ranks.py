"""Run as a script: one optimizer step of every method on 2 and on 4 ranks by each strategy, and what rank 0 finds in files.

`python tests/support/ranks.py CHECKPOINT FOLDER`; a test calls `measure` in a process of its own to compare.
"""

import os
import socket
import sys
import traceback
from pathlib import Path
from unittest.mock import patch

import torch
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from safetensors.torch import save_file
from tiny import rows

from lit_llm.args.finetune import LoRAFinetuneArgs, TrainArgs
from lit_llm.checkpoint.load_model import load_model
from lit_llm.data.batches import StepPlan, collate, pack
from lit_llm.data.examples import tokenize_all
from lit_llm.devices.fsdp import reshard, shard, whole
from lit_llm.methods.adapter_v2 import AdapterV2
from lit_llm.methods.dpo import DPO
from lit_llm.methods.full import Full
from lit_llm.methods.inject import freeze
from lit_llm.methods.lora import LoRA
from lit_llm.model.quantized_linear import QuantizedLinear
from lit_llm.ranks import largest, n_ranks, rank
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.training.fabric import launch
from lit_llm.training.loop import optimizer_step, validate
from lit_llm.training.objective import Objective
from lit_llm.training.optimizers import make_optimizer
from lit_llm.training.saves import State, load_state, save_state, trained_parameters

LORA = {"targets": "all-linear", "dropout": 0.0}
BASE = {}  # float32, not quantized
BF16 = {"dtype": torch.bfloat16}
CASES = {
    "full": (Full, BASE),
    "lora": (lambda: LoRA(**LORA), BASE),
    "adapter_v2": (lambda: AdapterV2(start_layer=0), BASE),
    "dpo": (lambda: DPO(0.1, **LORA), BASE),
    "lora-nf4": (lambda: LoRA(**LORA), {"quantize": "bnb.nf4"}),
    "lora-nf4-dq": (lambda: LoRA(**LORA), {"quantize": "bnb.nf4-dq"}),
    "dora-nf4-dq": (lambda: LoRA(**LORA, use_dora=True), {"quantize": "bnb.nf4-dq"}),
    "lora-bf16": (lambda: LoRA(**LORA), BF16),
    "full-from-bf16": (Full, BF16),
    "full-offload": (Full, BASE),
    "full-autocast": (Full, BASE),
    "full-head": (lambda: Full("lm_head"), BASE),
    "lora-head": (lambda: LoRA(targets="head", dropout=0.0), BASE),
    "lora-int8": (lambda: LoRA(**LORA), {"quantize": "bnb.int8"}),
}
PRECISIONS = {"lora-bf16": "bf16-true", "full-autocast": "bf16-true"}
QUANTIZED = ("bnb.nf4", "bnb.nf4-dq")
RESUMED = ("full", "adapter_v2")


def ragged(checkpoint, pairs=False):
    """Nine examples of very different lengths: too few for four ranks to have as many micro-batches each."""
    records = rows(9, seed=5)
    if pairs:
        records = [
            {"prompt": r["instruction"], "chosen": r["output"], "rejected": other["output"]}
            for r, other in zip(records, rows(9, seed=6), strict=True)
        ]
    return tokenize_all(records, "alpaca", Tokenizer(checkpoint), True, 256)[0]


def fabric_for(name, n_devices, strategy):
    """As finetuning makes it for a case, on CPUs."""
    args = LoRAFinetuneArgs(
        accelerator="cpu", devices=n_devices, strategy="auto" if strategy == "one" else strategy,
        precision=PRECISIONS.get(name, "32-true"), quantize=CASES[name][1].get("quantize"),
        cpu_offload=strategy == "fsdp" and name == "full-offload",
    )  # fmt: skip
    return launch(args, strategy, torch.device("cpu"), trains_base=name.startswith("full"))


def measure(checkpoint, name, micro_batch_size, n_devices=1, strategy="one", load_from=None, save_to=None):
    """Loss, validation loss and gradients of one step, the weights before and after it, as tensors by name.

    Args:
        load_from, save_to: Saves of a run, to go on from before the step, and to write after it.
    """
    fabric, (make, base) = fabric_for(name, n_devices, strategy), CASES[name]
    in_parts = isinstance(fabric.strategy, ModelParallelStrategy)
    model, method = load_model(checkpoint, **base, in_parts=in_parts), make()
    method.in_parts = in_parts
    model.activation_checkpointing = name == "full"
    torch.manual_seed(0)
    method.attach(model)
    with torch.no_grad():
        for parameter in freeze(model, method):
            if method.name != "full":
                parameter += 0.1 * torch.randn_like(parameter)  # away from zero, so that each has a gradient
    examples = ragged(checkpoint, pairs=name == "dpo")
    lengths = [len(example) for example in examples]
    objective = fabric.setup_module(Objective(model, method.loss))
    optimizer = make_optimizer(model, method, TrainArgs(learning_rate=1e-3), torch.device("cpu"))
    found = {}

    def weights():
        reshard(model)
        return {n: whole(p.detach()).clone() for n, p in trained_parameters(model).items()}

    def catch(*_):
        found.update({f"gradient/{n}": whole(p.grad).clone() for n, p in trained_parameters(model).items()})

    optimizer.register_step_pre_hook(catch)
    optimizer = fabric.setup_optimizers(optimizer)
    if load_from is not None:
        load_state(load_from, model, optimizer)
        found |= {f"before/{n}": weight for n, weight in weights().items()}
    batches = [collate([examples[i] for i in g]) for g in pack(range(9), lengths, micro_batch_size, max(lengths), False)]
    found["val_loss"] = torch.tensor(validate(fabric, objective, batches, None))
    plan = StepPlan(lengths, 9, micro_batch_size, max(lengths), False, 0)
    groups = plan.deal(plan.examples(0), n_ranks())[rank()]
    measured = optimizer_step(fabric, objective, optimizer, groups, examples, 1e-3, 1.0)
    if save_to is not None:
        save_state(save_to, State(step=1), model, optimizer, lambda _: None)
    found |= {f"after/{n}": weight for n, weight in weights().items()}
    return {**found, **{f"measured/{n}": value.clone() for n, value in measured.items()}}


def hold(checkpoint, quantization, n_devices):
    """Bytes of quantized weights and scales that a rank holds at most, once they are loaded and while they are sharded; and
    what all ranks hold then."""
    from torch.distributed import fsdp
    from torch.distributed.device_mesh import init_device_mesh

    fabric_for("lora-nf4", n_devices, "fsdp")
    model = load_model(checkpoint, quantize=quantization, in_parts=True)

    def held():
        parts = [p for m in model.modules() if isinstance(m, QuantizedLinear) for p in (m.weight, m.absmax)]
        return sum((p.to_local() if hasattr(p, "to_local") else p).nbytes for p in parts)

    fully_shard, counts = fsdp.fully_shard, [held()]

    def counted(module, **options):
        counts.append(held())
        return fully_shard(module, **options)

    with patch.object(fsdp, "fully_shard", counted):
        shard(model, init_device_mesh("cpu", (n_devices,)), torch.float32)
    bytes_held = torch.tensor(largest(counts[0], max(counts)))
    return {"bytes": bytes_held, **{f"base/{n}": whole(p.detach()) for n, p in model.named_parameters()}}


def main(checkpoint, n_devices, strategy, folder):
    """`folder` holds the saves that a run of one process has made, and gets what is found."""
    found = {}
    for name in CASES:
        if (strategy, name) == ("fsdp", "lora-int8"):
            continue
        found |= {f"{name}/{n}": tensor for n, tensor in measure(checkpoint, name, 1, n_devices, strategy).items()}
    if (n_devices, strategy) == (2, "fsdp"):
        for name in RESUMED:
            save = folder / f"fsdp-{name}"
            for origin, how in (
                ("saved", {"save_to": save}), ("own", {"load_from": save}), ("one", {"load_from": folder / f"one-{name}"}),
            ):  # fmt: skip
                found |= {
                    f"{origin}-{name}/{n}": t for n, t in measure(checkpoint, name, 1, n_devices, strategy, **how).items()
                }
    for quantization in QUANTIZED if strategy == "fsdp" else ():
        found |= {f"{quantization}/{n}": tensor for n, tensor in hold(checkpoint, quantization, n_devices).items()}
    if rank() == 0:
        save_file(found, folder / f"{strategy}-{n_devices}.safetensors")


def fork(n_devices, run):
    """Call `run()` in `n_devices` new processes, as torchrun would start them. What is imported need not be imported again.

    Returns whether all went well.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(n_devices)}
    started = []
    for i in range(n_devices):
        os.environ |= {"LOCAL_RANK": str(i), "RANK": str(i)}
        if (child := os.fork()) == 0:
            code = 1
            try:
                run()
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        started.append(child)
    return not any(os.waitpid(child, 0)[1] for child in started)


if __name__ == "__main__":
    folder, checkpoint = Path(sys.argv[2]), Path(sys.argv[1])
    runs = [(n, strategy) for n in (2, 4) for strategy in ("ddp", "fsdp")]
    sys.exit(not all(fork(n, lambda n=n, s=s: main(checkpoint, n, s, folder)) for n, s in runs))
