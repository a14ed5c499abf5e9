"""Out of lit_llm: adapters merged into their base, checkpoints for transformers, adapters for PEFT."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_llm.checkpoint.adapters import attach_adapter, read_adapter
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.merge import _updates
from lit_llm.checkpoint.read import read_config, read_tensors, weight_files
from lit_llm.checkpoint.tensor_names import TABLES, Fused, names_of, to_hf
from lit_llm.checkpoint.write import copy_companions, save_safetensors, write_shards
from lit_llm.files import new_folder, read_json_object, unused_folder, write_json
from lit_llm.methods.lora import Update, base_weight
from lit_llm.model.config import LIT_CONFIG
from lit_llm.model.gpt import GPT


def export_hf(checkpoint_dir: Path, output_dir: Path) -> None:
    """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` opens, in shards of at most 5 GB.

    Raises:
        FileNotFoundError: if the checkpoint has no `config.json`, which describes the model to transformers.
        ValueError: if the checkpoint is not in our layout, or `output_dir` is in use (`unused_folder`).
    """
    output_dir = unused_folder(output_dir, "output_dir", [checkpoint_dir])
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
    output_dir = unused_folder(output_dir, "output_dir", [checkpoint_dir, adapter_dir])
    if read_adapter(adapter_dir)["method"] != "lora":
        raise ValueError(f"{adapter_dir} is not a LoRA adapter: PEFT's format has no place for it")
    model = load_model(checkpoint_dir, dtype=torch.float32)
    attach_adapter(model, adapter_dir)
    ours = {name: (linear, update) for name, linear, update in _updates(model)}
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for module, entry in TABLES[model.config.model_type](model.config).items():
        names = names_of(entry)
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
