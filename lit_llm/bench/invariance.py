"""Check on your model and data that neither the layout of a step nor the number of processes changes loss or gradient."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.measuring import report
from lit_llm.checkpoint.load import load_tokenizer
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.read import read_config
from lit_llm.data.batches import StepPlan, batches
from lit_llm.data.examples import Example, Pair, tokenize_all
from lit_llm.data.rows import iter_records
from lit_llm.data.token_cache import style_of
from lit_llm.errors import DataError
from lit_llm.methods.dpo import DPO
from lit_llm.methods.inject import freeze
from lit_llm.methods.lora import LoRA, switched_off
from lit_llm.methods.loss import next_token_loss
from lit_llm.methods.method import Loss
from lit_llm.model.gpt import GPT

LAYOUTS = ((1, False, 1), (3, False, 1), (8, False, 1), (1, True, 1), (4, True, 1), (2, True, 2), (2, False, 3))
"""Size of a micro-batch, packing, and processes. One process computes the shares of all, and adds them as several would."""

TOLERANCE = 1e-5
BETA = 0.1


def measure(args: BenchmarkArgs) -> None:
    """Raise ValueError if loss or gradient differ between layouts by more than the rounding of float32."""
    assert args.checkpoint_dir and args.data_dir
    examples, style = first_examples(args.checkpoint_dir, args.data_dir, args.n_examples)
    model = load_model(args.checkpoint_dir, dtype=torch.float32)
    attach_moving_lora(model)
    layouts = check_layouts(model, examples)
    worst = max(max(row["loss_difference"], row["gradient_difference"]) for row in layouts)
    equal = worst < TOLERANCE
    report({"examples": len(examples), "style": style, "equal": equal, "tolerance": TOLERANCE, "layouts": layouts})
    if not equal:
        raise ValueError(f"loss or gradient depend on the layout: the largest relative difference is {worst:.1e}")


def first_examples(checkpoint_dir: Path, data_dir: Path, n: int) -> tuple[list[Example | Pair], str]:
    """Return examples of the first `n` rows of a data folder, and the style in which finetuning would render them.

    Raises:
        DataError: if none fits the context.
    """
    config = read_config(checkpoint_dir)
    tokenizer = load_tokenizer(checkpoint_dir, config)
    path = data_dir / "train.jsonl"
    records, style = list(itertools.islice(iter_records(path), n)), style_of(path, tokenizer)
    examples, _ = tokenize_all(records, style, tokenizer, True, config.block_size)
    if not examples:
        raise DataError(f"none of the first {n} rows of {data_dir} fits the context. Use a higher `n_examples`")
    return examples, style


def attach_moving_lora(model: GPT) -> None:
    """Attach LoRA to every linear with B away from zero, so that each of its parameters has a gradient."""
    torch.manual_seed(0)
    method = LoRA(targets="all-linear", dropout=0.0)
    method.attach(model)
    for name, parameter in model.named_parameters():
        if name.endswith("lora.B"):
            torch.nn.init.normal_(parameter, std=0.02)
    freeze(model, method)


def check_layouts(model: GPT, examples: Sequence[Example | Pair]) -> list[dict[str, Any]]:
    """Compare loss and gradient of each layout with those of single examples with all their logits at once.

    Differences are relative: the gradient's is the norm of the difference over the norm. The loss of pairs is DPO's.
    """
    loss_of: Loss = DPO(BETA).loss if isinstance(examples[0], Pair) else next_token_loss
    n_targets = sum(example.n_targets for example in examples)
    expected_loss, expected = _gradient(model, _one_at_a_time(model, examples), n_targets)
    lengths, found = [len(example) for example in examples], []
    for micro_batch_size, packing, n_processes in LAYOUTS:
        plan = StepPlan(lengths, len(examples), micro_batch_size, max(lengths), packing, seed=0)
        groups = [group for share in plan.deal(range(len(examples)), n_processes) for group in share if group]
        sums = (loss_of(model, batch)[0] for batch in batches(groups, examples))
        loss, gradient = _gradient(model, sums, n_targets)
        distance = _norm(gradient[name] - value for name, value in expected.items())
        row = {
            "micro_batch_size": micro_batch_size, "packing": packing, "processes": n_processes, "micro_batches": len(groups),
            "loss": loss, "loss_difference": abs(loss - expected_loss) / expected_loss,
            "gradient_difference": distance / _norm(expected.values()),
        }  # fmt: skip
        found.append(row)
    return found


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.norm() ** 2) for tensor in tensors))


def _one_at_a_time(model: GPT, examples: Sequence[Example | Pair]) -> Iterator[Tensor]:
    """Yield the loss sum of each example, by the plain definitions."""
    for example in examples:
        if isinstance(example, Pair):
            chosen, rejected = (_negative_log_prob(model, document) for document in example.documents)
            with torch.no_grad(), switched_off(model):
                base_chosen, base_rejected = (_negative_log_prob(model, document) for document in example.documents)
            yield -F.logsigmoid(BETA * ((base_chosen - chosen) - (base_rejected - rejected)))
        else:
            yield _negative_log_prob(model, example)


def _negative_log_prob(model: GPT, document: Example) -> Tensor:
    ids = document.ids.long()
    labels = ids.where(document.trained, -100)
    return F.cross_entropy(model(ids[None])[0, :-1].float(), labels[1:], reduction="sum")


def _gradient(model: GPT, sums: Iterator[Tensor], n_targets: int) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    total = 0.0
    for loss_sum in sums:
        (loss_sum / n_targets).backward()
        total += loss_sum.item()
    return total / n_targets, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
