"""Run as a script: one optimizer step of every method on 2 and on 4 ranks; rank 0 writes loss and gradients to a file.

`python tests/ranks.py CHECKPOINT FOLDER`; a test calls `measure` in a process of its own to compare.
"""

import os
import socket
import sys
import traceback
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import rows

from lit_llm.args.finetune import LoRAFinetuneArgs
from lit_llm.checkpoint import load_model
from lit_llm.data import Plan, collate, lay_out, tokenize_all
from lit_llm.distributed import n_ranks, rank
from lit_llm.loss import next_token_loss
from lit_llm.methods.adapter_v2 import AdapterV2
from lit_llm.methods.dpo import DPO
from lit_llm.methods.full import Full
from lit_llm.methods.inject import freeze
from lit_llm.methods.lora import LoRA
from lit_llm.runtime import launch
from lit_llm.tokenizer import Tokenizer
from lit_llm.train import Objective, optimizer_step, validate

LORA = {"targets": "all-linear", "dropout": 0.0}
CASES = {
    "full": (Full, None),
    "lora": (lambda: LoRA(**LORA), None),
    "adapter_v2": (lambda: AdapterV2(start_layer=0), None),
    "dpo": (lambda: DPO(0.1, LoRA(**LORA)), None),
    "lora-nf4": (lambda: LoRA(**LORA), "bnb.nf4"),
    "lora-int8": (lambda: LoRA(**LORA), "bnb.int8"),
}


def ragged(checkpoint, pairs=False):
    """Nine examples of very different lengths: too few for four ranks to have as many micro-batches each."""
    records = rows(9, seed=5)
    if pairs:
        records = [
            {"prompt": r["instruction"], "chosen": r["output"], "rejected": other["output"]}
            for r, other in zip(records, rows(9, seed=6), strict=True)
        ]
    return tokenize_all(records, "alpaca", Tokenizer(checkpoint), True, 256)[0]


def measure(fabric, checkpoint, name, micro_batch_size):
    """Loss, validation loss and gradients of one step, as tensors by name."""
    make, quantize = CASES[name]
    model, method = load_model(checkpoint, quantize=quantize), make()
    torch.manual_seed(0)
    method.attach(model)
    with torch.no_grad():
        for parameter in freeze(model, method):
            parameter += 0.1 * torch.randn_like(parameter)  # away from zero, so that each has a gradient
    found = {}

    class Catch(torch.optim.SGD):
        def step(self, closure=None):
            found.update({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})

    examples = ragged(checkpoint, pairs=name == "dpo")
    lengths = [len(example) for example in examples]
    optimizer = Catch([{"params": freeze(model, method), "lr_scale": 1.0}], lr=1.0)
    loss = method.loss if name == "dpo" else next_token_loss
    objective, optimizer = fabric.setup(Objective(model, loss), optimizer)
    batches = [collate([examples[i] for i in g]) for g in lay_out(range(9), lengths, micro_batch_size, max(lengths), False)]
    found["val_loss"] = torch.tensor(validate(fabric, objective, batches, None))
    plan = Plan(lengths, 9, micro_batch_size, max(lengths), False, 0)
    groups = plan.deal(plan.examples(0), n_ranks())[rank()]
    measured = optimizer_step(fabric, objective, optimizer, groups, examples, 1.0, None)
    return {**found, **{f"measured/{n}": value for n, value in measured.items()}}


def main(checkpoint, n_devices, folder):
    args = LoRAFinetuneArgs(accelerator="cpu", devices=n_devices)
    fabric = launch(args, torch.device("cpu"), "32-true", trains_base=False)
    found = {}
    for name in CASES:
        found |= {f"{name}/{n}": tensor for n, tensor in measure(fabric, checkpoint, name, 1).items()}
    if rank() == 0:
        save_file(found, folder / f"{n_devices}.safetensors")


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
    sys.exit(not all(fork(n, lambda n=n: main(checkpoint, n, folder)) for n in (2, 4)))
