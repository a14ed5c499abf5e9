"""Merge adapters into the weights of their base, and prove that the result computes the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.checkpoint.adapters import attach_adapter, read_adapter, write_merged
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.read import read_tensors, weight_files
from lit_llm.checkpoint.write import write_checkpoint
from lit_llm.files import new_folder, unused_folder
from lit_llm.methods.inject import eject, inject
from lit_llm.methods.lora import UNMERGED, Update, apply_update, merge
from lit_llm.model.config import LIT_CONFIG
from lit_llm.model.gpt import GPT

# Of logits, as a share of the largest one: float32 rounds in proportion to size. A right merge stays some 10 times below.
TOLERANCE = 1e-4


def merge_adapters(
    checkpoint_dir: Path, adapters: Sequence[Path], weights: Sequence[float], output_dir: Path
) -> dict[str, Any]:
    """Write the base plus the weighted sum of LoRA updates as a checkpoint folder, in the dtype of the base.

    The sum is made in float32 and proved: the merged model must give the logits of adapter and base, and what was written is
    read again.

    Returns:
        `max_difference` of the merged float32 logits from those of adapter and base, and the `share` of the largest logit that
        it is; `top1_agreement` and `kl` (nats per token) of the written model, in its own dtype, with them;
        the `prompt_style` to ask it in, which stands in `finetuned.json`.

    Raises:
        ValueError: if `output_dir` is in use (`unused_folder`), an adapter is not LoRA's or not of this base, or the proof
            fails; nothing is written then.
    """
    output_dir = unused_folder(output_dir, "output_dir", [checkpoint_dir, *adapters])
    model = load_model(checkpoint_dir, dtype=torch.float32)
    native = (checkpoint_dir / LIT_CONFIG).is_file()
    stored = next(iter(read_tensors(weight_files(checkpoint_dir, native))))[1]().dtype
    _attach_sum(model, adapters, weights)
    model.eval()  # the updates too: their dropout would change the logits
    ids = _probe(model)
    expected = _logits(model, ids)
    merge(model)
    merged = _logits(model, ids)
    difference, share = (merged - expected).abs().max().item(), _share(merged, expected)
    if not share <= TOLERANCE:
        raise ValueError(
            f"the merged model's logits differ from those of adapter and base by {share:.1e} of the largest one, where "
            f"rounding makes less than {TOLERANCE:.0e}; nothing was written. {UNMERGED}"
        )
    with new_folder(output_dir) as folder:
        write_checkpoint(folder, model, checkpoint_dir, stored)
        style = write_merged(folder, model, checkpoint_dir, adapters, weights)
        written = _logits(load_model(folder, dtype=torch.float32).eval(), ids)
        if stored == torch.float32 and not _share(written, merged) <= TOLERANCE:
            raise ValueError(
                "the written model gives other logits than the merged one: the disk may be failing. Choose an --output_dir on "
                "another one"
            )
    agreement = (written.argmax(-1) == expected.argmax(-1)).float().mean().item()
    kl = F.kl_div(written.log_softmax(-1), expected.log_softmax(-1), reduction="sum", log_target=True).item() / ids.numel()
    return {"max_difference": difference, "share": share, "top1_agreement": agreement, "kl": kl, "prompt_style": style}


def _share(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest number expected."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _attach_sum(model: GPT, adapters: Sequence[Path], weights: Sequence[float]) -> None:
    """Attach one LoRA that is the weighted sum of several: their A below one another, their B side by side."""
    for folder in adapters:
        about = read_adapter(folder)
        if about["method"] != "lora":
            raise ValueError(
                f"{folder} is an {about['method']} adapter, which is no change of weights. Only LoRA can be merged"
            )
        if about["arguments"]["use_dora"] and (len(adapters) > 1 or weights[0] != 1):
            raise ValueError(f"{folder} is a DoRA adapter: its magnitudes cannot be summed. Merge it alone, with weight 1")
    if list(weights) == [1.0]:
        return attach_adapter(model, adapters[0])
    collected: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for folder, weight in zip(adapters, weights, strict=True):
        attach_adapter(model, folder)
        for name, linear, update in _updates(model):
            collected.setdefault(name, []).append((update.A.detach(), update.B.detach() * update.scale * weight))
            eject(linear, "lora")
    for name, parts in collected.items():
        linear = model.get_submodule(name)
        a, b = torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], dim=1)
        update = Update(a.size(1), b.size(0), len(a), 1.0, 0.0)
        update.A, update.B = nn.Parameter(a), nn.Parameter(b)
        inject(linear, "lora", update.eval(), apply_update)


def _updates(model: GPT) -> list[tuple[str, nn.Module, Update]]:
    return [(n, m, m.lora) for n, m in model.named_modules() if isinstance(getattr(m, "lora", None), Update)]  # type: ignore[misc]


def _probe(model: GPT) -> Tensor:
    """Token ids (4, T) from a fixed seed."""
    length = min(64, model.config.block_size)
    return torch.randint(model.config.vocab_size, (4, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _logits(model: GPT, ids: Tensor) -> Tensor:
    return model(ids)
