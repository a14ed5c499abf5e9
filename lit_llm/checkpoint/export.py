"""Export to other libraries: checkpoints for transformers, adapters for PEFT."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.checkpoint.adapters import attach_adapter, read_adapter
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.merge import lora_updates
from lit_llm.checkpoint.read import checked, expected_shapes, read_config, read_model_tensors, read_tensors, weight_files
from lit_llm.checkpoint.tables import TABLES
from lit_llm.checkpoint.tables.rows import Fused, names_of
from lit_llm.checkpoint.tensor_names import hf_names, to_hf
from lit_llm.checkpoint.write import copy_companions, save_safetensors, write_shards
from lit_llm.errors import CheckpointError
from lit_llm.files import read_json_object, unused_folder, write_json
from lit_llm.methods.lora import Update, base_weight
from lit_llm.model.config import LIT_CONFIG
from lit_llm.model.families import TextPart, text_part
from lit_llm.model.gpt import GPT
from lit_llm.text.gguf_file import is_gguf


def export_hf(checkpoint_dir: Path | str, output_dir: Path | str) -> None:
    """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` opens, in shards of at most 5 GB. Of a multimodal
    model it holds the text part alone.

    Raises:
        FileNotFoundError: if the checkpoint has no `config.json`, which describes the model to transformers.
        CheckpointError: if the checkpoint is not in our layout, its `config.json` is of another family, or its weights are not
            those of its config.
        ValueError: if `output_dir` is in use (`unused_folder`).
    """
    checkpoint_dir = Path(checkpoint_dir)
    if is_gguf(checkpoint_dir):
        convert_first = f"python scripts/convert_hf_checkpoint.py --checkpoint_dir {checkpoint_dir}"
        raise CheckpointError(f"{checkpoint_dir} is a GGUF file. Convert it first: {convert_first}")
    config = read_config(checkpoint_dir)
    if not (checkpoint_dir / LIT_CONFIG).is_file():
        raise CheckpointError(f"{checkpoint_dir} is in Hugging Face's layout already: transformers opens it as it is")
    if not (checkpoint_dir / "config.json").is_file():
        raise FileNotFoundError(f"{checkpoint_dir} lacks config.json. Copy it there from the model that this one was made from")
    hf = read_json_object(checkpoint_dir / "config.json")
    if (part := text_part(hf)) is not None:  # the vision part is not here: the text model is written alone
        hf = part.config_json(hf)
        hf["architectures"] = [f"{config.model_type.removesuffix('_text').capitalize()}ForCausalLM"]
    if hf.get("model_type") != config.model_type:
        raise CheckpointError(
            f"config.json in {checkpoint_dir} has model_type {hf.get('model_type')!r}, the weights were converted as "
            f"{config.model_type!r}. Convert them again, with this config.json next to them: "
            f"python scripts/convert_hf_checkpoint.py --checkpoint_dir {checkpoint_dir}"
        )
    with unused_folder(Path(output_dir), "output_dir", [checkpoint_dir]) as folder:
        sizes: Counter[torch.dtype] = Counter()
        for _, tensor in checked(*read_model_tensors(checkpoint_dir, config), expected_shapes(config), checkpoint_dir):
            sizes[tensor.dtype] += tensor.numel()
        most_common = sizes.most_common(1)[0][0]  # transformers casts all weights to the one dtype in config.json
        hf["torch_dtype" if "torch_dtype" in hf else "dtype"] = str(most_common).removeprefix("torch.")
        # Weights that Lit-GPT finetuned may be untied or padded where its base was not.
        hf |= {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_embeddings}
        lit = dict(read_tensors(*weight_files(checkpoint_dir, native=True)))
        write_shards(to_hf(config, lit), folder, "model.safetensors")
        copy_companions(checkpoint_dir, folder)
        write_json(folder / "config.json", hf)


def export_peft(checkpoint_dir: Path | str, adapter_dir: Path | str, output_dir: Path | str) -> None:
    """Write a LoRA adapter as a folder that `peft.PeftModel.from_pretrained` opens over the base in transformers, which is the
    whole model if the text part of a multimodal one was adapted.

    Raises:
        CheckpointError: if the adapter is not LoRA's, or adapts experts, which transformers does not hold as linears.
        ValueError: if `output_dir` is in use (`unused_folder`).
    """
    checkpoint_dir, adapter_dir = Path(checkpoint_dir), Path(adapter_dir)
    about = read_adapter(adapter_dir)
    if about["method"] != "lora":
        raise CheckpointError(f"{adapter_dir} is an {about['method']} adapter, which PEFT's format cannot hold. Only LoRA can")
    with unused_folder(Path(output_dir), "output_dir", [checkpoint_dir, adapter_dir]) as folder:
        model = load_model(checkpoint_dir, dtype=torch.float32)
        attach_adapter(model, adapter_dir)
        linears = _peft_linears(model, hf_names(model.config, checkpoint_dir).part)
        tensors: dict[str, Tensor] = {}
        for target, linear in linears.items():
            prefix = f"base_model.model.{target}.lora_"
            tensors |= {f"{prefix}A.weight": linear.A, f"{prefix}B.weight": linear.B}
            if linear.magnitude is not None:
                tensors[f"{prefix}magnitude_vector"] = linear.magnitude
        save_safetensors(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        config = _peft_config(model, checkpoint_dir, about["arguments"], linears)
        # ASCII: PEFT reads it in the locale's encoding.
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


@dataclass(frozen=True)
class _PeftLinear:
    """The update of one upstream linear with C_in and C_out features, scale * B A."""

    A: Tensor  # (r, C_in)
    B: Tensor  # (C_out, r)
    scale: float
    magnitude: Tensor | None  # (C_out,), of DoRA


def _peft_linears(model: GPT, part: TextPart | None) -> dict[str, _PeftLinear]:
    """Return the upstream linears that the adapter changes, by upstream name; with `part`, that in the multimodal model."""
    updates, config, found = lora_updates(model), model.config, {}
    for module, entry in TABLES[config.model_type](config).items():
        names = names_of(entry)
        for layer in range(config.n_layer) if "{}" in module else ("",):
            parts = [name.format(layer, 0) for name in names]
            if not any(part in updates for part in parts):
                continue
            if ".experts." in parts[0]:
                raise CheckpointError("the adapter changes experts, which transformers does not hold as linears. Merge it")
            assert isinstance(entry, str | Fused)  # others hold experts, or no linear
            target = "lm_head" if names == ("lm_head",) else module.format(layer)
            if part is not None:  # PEFT finds the linears of the multimodal model
                target = part.stored_names(target)[0]
            found[target] = _peft_linear(model, entry, parts, updates)
    return found


def _peft_linear(model: GPT, entry: str | Fused, parts: list[str], updates: Mapping[str, Update]) -> _PeftLinear:
    """Return one update for an upstream linear that holds `parts`, some of them adapted, one below the other.

    [B_q A_q; 0; B_v A_v] = B A with A = [A_q; A_v] and B block diagonal, with zero rows for parts without an update.
    """

    def join(tensors: list[Tensor]) -> Tensor:
        """In upstream's order of rows."""
        return tensors[0] if isinstance(entry, str) else replace(entry, transposed=False).join(model.config, tensors)

    linears = [model.get_submodule(part) for part in parts]
    present = [updates.get(part) for part in parts]
    first, *_ = adapted = [update for update in present if update is not None]
    blocks = [torch.zeros(m.out_features, 0) if u is None else u.B.detach() for m, u in zip(linears, present, strict=True)]  # type: ignore[arg-type]
    magnitude = None
    if first.magnitude is not None:
        norms = [base_weight(m).norm(dim=1) if u is None else u.magnitude for m, u in zip(linears, present, strict=True)]
        magnitude = join([norm.detach() for norm in norms])  # type: ignore[union-attr]
    return _PeftLinear(
        A=torch.cat([update.A.detach() for update in adapted]),
        B=join(list(torch.block_diag(*blocks).split([len(block) for block in blocks]))),
        scale=first.scale,
        magnitude=magnitude,
    )


def _peft_config(
    model: GPT, checkpoint_dir: Path, arguments: Mapping[str, Any], linears: Mapping[str, _PeftLinear]
) -> dict[str, Any]:
    """Return the contents of `adapter_config.json`."""
    ranks = {target: len(linear.A) for target, linear in linears.items()}
    alphas = {target: linear.scale * len(linear.A) for target, linear in linears.items()}  # PEFT's scale is alpha / r
    entries = TABLES[model.config.model_type](model.config).values()
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(checkpoint_dir),
        "r": next(iter(ranks.values())),
        "lora_alpha": next(iter(alphas.values())),
        "lora_dropout": arguments["dropout"],
        "use_dora": arguments["use_dora"],
        "target_modules": sorted(ranks),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "fan_in_fan_out": any(isinstance(entry, Fused) and entry.transposed for entry in entries),
        "bias": "none",
        "inference_mode": True,
    }
