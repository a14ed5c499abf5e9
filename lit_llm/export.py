"""Out of lit_llm: adapters merged into their base, checkpoints for transformers, adapters for PEFT."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.adapters import attach_adapter, read_adapter, write_merged
from lit_llm.checkpoint import (
    copy_companions,
    load_model,
    read_config,
    read_tensors,
    save_safetensors,
    weight_files,
    write_checkpoint,
    write_shards,
)
from lit_llm.files import new_folder, read_json_object, unused_folder, write_json
from lit_llm.methods.inject import eject, inject
from lit_llm.methods.lora import UNMERGED, Update, apply_update, base_weight, merge
from lit_llm.model.config import LIT_CONFIG
from lit_llm.model.gpt import GPT
from lit_llm.weights import TABLES, Fused, to_hf

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
    output_dir = unused_folder(output_dir, "--output_dir", [checkpoint_dir, *adapters])
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


def export_hf(checkpoint_dir: Path, output_dir: Path) -> None:
    """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` opens, in shards of at most 5 GB.

    Raises:
        FileNotFoundError: if the checkpoint has no `config.json`, which describes the model to transformers.
        ValueError: if the checkpoint is not in our layout, or `output_dir` is in use (`unused_folder`).
    """
    output_dir = unused_folder(output_dir, "--output_dir", [checkpoint_dir])
    config = read_config(checkpoint_dir)
    if not (checkpoint_dir / LIT_CONFIG).is_file():
        raise ValueError(f"{checkpoint_dir} is in Hugging Face's layout already: transformers opens it as it is")
    hf = _hf_config(checkpoint_dir)
    if hf.get("model_type") != config.model_type:
        raise ValueError(
            f"config.json in {checkpoint_dir} has model_type {hf.get('model_type')!r}, the weights were converted as "
            f"{config.model_type!r}. Convert them again, with this config.json beside them: "
            f"python scripts/convert_hf_checkpoint.py --checkpoint_dir {checkpoint_dir}"
        )
    lit = dict(read_tensors(weight_files(checkpoint_dir, native=True)))
    dtype = str(next(iter(lit.values()))().dtype).removeprefix("torch.")
    with new_folder(output_dir) as folder:
        write_shards(to_hf(config, lit), folder, "model.safetensors")
        copy_companions(checkpoint_dir, folder)
        hf["torch_dtype" if "torch_dtype" in hf else "dtype"] = dtype
        # Weights that Lit-GPT finetuned may be untied or padded where its base was not.
        write_json(
            folder / "config.json", {**hf, "vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_embeddings}
        )


def _hf_config(checkpoint_dir: Path) -> dict[str, Any]:
    path = checkpoint_dir / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{checkpoint_dir} lacks config.json. Copy it there from the model that this one was made from")
    return read_json_object(path)


def export_peft(checkpoint_dir: Path, adapter_dir: Path, output_dir: Path) -> None:
    """Write a LoRA adapter as a folder that `peft.PeftModel.from_pretrained` opens over the base in transformers.

    Raises:
        ValueError: if the adapter is not LoRA's, or adapts experts, which transformers does not hold as linears, or if
            `output_dir` is in use (`unused_folder`).
    """
    output_dir = unused_folder(output_dir, "--output_dir", [checkpoint_dir, adapter_dir])
    if read_adapter(adapter_dir)["method"] != "lora":
        raise ValueError(f"{adapter_dir} is not a LoRA adapter: PEFT's format has no place for it")
    model = load_model(checkpoint_dir, dtype=torch.float32)
    attach_adapter(model, adapter_dir)
    ours = {name: (linear, update) for name, linear, update in _updates(model)}
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for module, entry in TABLES[model.config.model_type](model.config).items():
        names = (entry,) if isinstance(entry, str) else entry.names
        for layer in range(model.config.n_layer) if "{}" in module else ("",):
            parts = [name.format(layer, 0) for name in names]
            if ".experts." in parts[0] and parts[0] in ours:
                raise ValueError("the adapter changes experts, which transformers does not hold as linears. Merge it instead")
            if not any(part in ours for part in parts):
                continue
            target = "lm_head" if names == ("lm_head",) else module.format(layer)
            a, b, magnitude, scale = _peft_matrices(model, entry, parts, ours)
            ranks[target], alphas[target] = len(a), scale * len(a)
            prefix = f"base_model.model.{target}.lora_"
            tensors |= {f"{prefix}A.weight": a, f"{prefix}B.weight": b}
            if magnitude is not None:
                tensors[f"{prefix}magnitude_vector"] = magnitude
    transposed = any(isinstance(e, Fused) and e.transposed for e in TABLES[model.config.model_type](model.config).values())
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(checkpoint_dir),
        "r": next(iter(ranks.values())),
        "lora_alpha": next(iter(alphas.values())),
        "lora_dropout": read_adapter(adapter_dir)["arguments"]["dropout"],
        "use_dora": read_adapter(adapter_dir)["arguments"]["use_dora"],
        "target_modules": sorted(ranks),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "fan_in_fan_out": transposed,
        "bias": "none",
        "inference_mode": True,
    }
    with new_folder(output_dir) as folder:
        save_safetensors(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(about, indent=2) + "\n")


def _peft_matrices(
    model: GPT, entry: str | Fused, parts: list[str], ours: dict[str, tuple[nn.Module, Update]]
) -> tuple[Tensor, Tensor, Tensor | None, float]:
    """A, B, magnitude and scale for an upstream module, which may hold several of our linears one below the other.

    The A of its parts lie below one another, and each part's B stands in its own rows and columns, zeros elsewhere.
    """
    present = [part for part in parts if part in ours]
    updates = [ours[part][1] for part in present]
    a = torch.cat([update.A.detach() for update in updates])
    rows, column = [], 0
    for part in parts:
        linear = model.get_submodule(part)
        block = torch.zeros(linear.out_features, len(a))  # type: ignore[arg-type]
        if part in ours:
            update = ours[part][1]
            block[:, column : column + len(update.A)] = update.B.detach()
            column += len(update.A)
        rows.append(block)
    magnitudes = None
    if updates[0].magnitude is not None:
        linears = [(model.get_submodule(part), ours.get(part)) for part in parts]
        magnitudes = [base_weight(m).norm(dim=1) if o is None else o[1].magnitude.detach() for m, o in linears]  # type: ignore[union-attr]
    if isinstance(entry, str):
        return a, rows[0], None if magnitudes is None else magnitudes[0], updates[0].scale
    upright = dataclasses.replace(entry, transposed=False)
    joined = None if magnitudes is None else upright.join(model.config, magnitudes)
    return a, upright.join(model.config, rows), joined, updates[0].scale
