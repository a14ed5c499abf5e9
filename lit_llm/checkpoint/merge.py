"""Merge adapters into the weights of their base, and prove that the result computes the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.checkpoint.adapters import attach_adapter, read_adapter, write_merged
from lit_llm.checkpoint.combine import Combine
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.write import write_checkpoint
from lit_llm.errors import CheckpointError
from lit_llm.files import unused_folder
from lit_llm.methods.inject import eject, inject
from lit_llm.methods.lora import UNMERGED, Update, apply_update, merge
from lit_llm.model.gpt import GPT

# Of logits, as a share of the largest one: float32 rounds in proportion to size. A right merge is some 10 times below.
TOLERANCE = 1e-4


def merge_adapters(
    checkpoint_dir: Path | str,
    adapters: Sequence[Path | str],
    weights: Sequence[float],
    output_dir: Path | str,
    combine: Combine | None = None,
) -> dict[str, Any]:
    """Write the base plus the weighted sum of LoRA updates as a checkpoint folder, in the dtypes of the base.

    The sum is made in float32 and proved: the merged model must give the logits of adapter and base, and the written model is
    read again.

    Args:
        combine: Combination of the changes of each weight. None: their weighted sum.

    Returns:
        `max_difference` of the merged float32 logits from those of adapter and base, and its `share` of the largest logit;
        `top1_agreement` and `kl` (nats per token) of the written model, in its own dtypes, with adapter and base;
        the `prompt_style` to ask it in, which is also in `finetuned.json`.

    Raises:
        CheckpointError: if an adapter is not LoRA's or not of this base, or the proof fails; nothing is written then.
        ValueError: if `output_dir` is in use (`unused_folder`).
    """
    checkpoint_dir, adapters = Path(checkpoint_dir), [Path(adapter) for adapter in adapters]
    with unused_folder(Path(output_dir), "output_dir", [checkpoint_dir, *adapters]) as folder:
        model = load_model(checkpoint_dir, dtype=torch.float32)
        _attach_sum(model, adapters, weights, combine)
        expected, merged, share = merge_attached(model)
        rounds = set(model.stored_dtypes.values()) != {torch.float32}
        write_checkpoint(folder, model, checkpoint_dir)
        style = write_merged(folder, model, checkpoint_dir, adapters, weights)
        written = _logits(load_model(folder, dtype=torch.float32).eval())
        if not rounds and not _share(written, merged) <= TOLERANCE:
            raise CheckpointError(
                "the written model gives other logits than the merged one: the disk may be failing. Choose an `output_dir` on "
                "another one"
            )
    n_tokens = expected[..., 0].numel()
    return {
        "max_difference": (merged - expected).abs().max().item(),
        "share": share,
        "top1_agreement": (written.argmax(-1) == expected.argmax(-1)).float().mean().item(),
        "kl": F.kl_div(written.log_softmax(-1), expected.log_softmax(-1), reduction="sum", log_target=True).item() / n_tokens,
        "prompt_style": style,
    }


def merge_attached(model: GPT) -> tuple[Tensor, Tensor, float]:
    """Add the attached LoRA to the weights, in place.

    Returns:
        Logits before and after, and their largest difference as a share of the largest logit.

    Raises:
        CheckpointError: if that share is more than rounding makes.
    """
    model.eval()  # the updates too: their dropout would change the logits
    expected = _logits(model)
    merge(model)
    merged = _logits(model)
    share = _share(merged, expected)
    if not share <= TOLERANCE:  # NaN fails too
        raise CheckpointError(
            f"the merged model's logits differ from those of adapter and base by {share:.1e} of the largest one, where "
            f"rounding makes less than {TOLERANCE:.0e}; nothing was written. {UNMERGED}"
        )
    return expected, merged, share


class _Change(Update):
    """An update that is a whole matrix: combinations have no low rank."""

    def __init__(self, change: Tensor) -> None:
        super().__init__(change.size(1), change.size(0), 1, scale=1.0, dropout=0.0)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.change)

    def delta(self) -> Tensor:
        return self.change


def _attach_sum(model: GPT, adapters: Sequence[Path], weights: Sequence[float], combine: Combine | None) -> None:
    """Attach one LoRA that is the weighted sum of several: sum_i w_i B_i A_i = [w_1 B_1, w_2 B_2, ...] [A_1; A_2; ...]. With
    `combine`, attach the combination of w_i and B_i A_i, where an adapter without an update counts as zeros."""
    for folder in adapters:
        about = read_adapter(folder)
        if about["method"] != "lora":
            raise CheckpointError(
                f"{folder} is an {about['method']} adapter, which does not change weights. Only LoRA can be merged"
            )
        if about["arguments"].get("modules_to_save") and (len(adapters) > 1 or weights[0] != 1):
            raise CheckpointError(f"{folder} trains whole modules, which cannot be combined. Merge it alone, with weight 1")
        if about["arguments"]["use_dora"] and (len(adapters) > 1 or weights[0] != 1):
            raise CheckpointError(f"{folder} is a DoRA adapter: its magnitudes cannot be summed. Merge it alone, with weight 1")
    if list(weights) == [1.0]:
        return attach_adapter(model, adapters[0])
    collected: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for i, folder in enumerate(adapters):
        attach_adapter(model, folder)
        for name, update in lora_updates(model).items():
            collected.setdefault(name, {})[i] = update.A.detach(), update.B.detach() * update.scale
            eject(model.get_submodule(name), "lora")
    for name, parts in collected.items():
        if combine is not None:
            zero = torch.zeros_like(model.get_submodule(name).get_parameter("weight"))
            changes = [parts[i][1] @ parts[i][0] if i in parts else zero for i in range(len(adapters))]
            inject(model.get_submodule(name), "lora", _Change(combine(changes, weights)).eval(), apply_update)
            continue
        a = torch.cat([a for a, _ in parts.values()])
        b = torch.cat([b * weights[i] for i, (_, b) in parts.items()], dim=1)
        update = Update(a.size(1), b.size(0), len(a), scale=1.0, dropout=0.0)
        update.A, update.B = nn.Parameter(a), nn.Parameter(b)
        inject(model.get_submodule(name), "lora", update.eval(), apply_update)


def lora_updates(model: GPT) -> dict[str, Update]:
    """Return the update of every linear that LoRA changes, by the linear's name."""
    found = {name: getattr(module, "lora", None) for name, module in model.named_modules()}
    return {name: update for name, update in found.items() if isinstance(update, Update)}


@torch.no_grad()
def _logits(model: GPT) -> Tensor:
    """Return logits (4, T, vocab_size) of token ids from a fixed seed."""
    length = min(64, model.config.block_size)
    return model(torch.randint(model.config.vocab_size, (4, length), generator=torch.Generator().manual_seed(0)))


def _share(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest number expected."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
