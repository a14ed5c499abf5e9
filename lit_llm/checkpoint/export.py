"""Export to other libraries: checkpoints for transformers, adapters for PEFT."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.checkpoint.adapters import Adapter, attach_adapter
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.merge import lora_updates
from lit_llm.checkpoint.peft_adapters import PEFT_CONFIG, PEFT_WEIGHTS, STYLE_KEY, TEMPLATE_KEY
from lit_llm.checkpoint.read import checked, expected_shapes, read_config, read_model_tensors, read_tensors, weight_files
from lit_llm.checkpoint.tables import TABLES
from lit_llm.checkpoint.tables.rows import Fused
from lit_llm.checkpoint.tensor_names import hf_names, to_hf
from lit_llm.checkpoint.upstream_linears import RENAMED, LowRank, upstream_linears
from lit_llm.checkpoint.write import copy_companions, save_safetensors, write_shards
from lit_llm.errors import CheckpointError
from lit_llm.files import read_json_object, unused_folder, write_json
from lit_llm.methods.lora import base_weight
from lit_llm.model.config import LIT_CONFIG
from lit_llm.model.families import TextPart, text_part
from lit_llm.model.gpt import GPT
from lit_llm.schema import shown
from lit_llm.text.gguf_file import is_gguf


def export_hf(checkpoint_dir: Path | str, output_dir: Path | str) -> None:
    """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` opens, in shards of at most 5 GB. If the
    checkpoint is of a multimodal model, the folder holds its text model alone.

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
        hf["architectures"] = [f"{config.model_type.removesuffix('_text').capitalize().replace('_moe', 'Moe')}ForCausalLM"]
    if hf.get("model_type") != config.model_type:
        raise CheckpointError(
            f"config.json in {checkpoint_dir} has model_type {shown(hf.get('model_type'))}, the weights were converted as "
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
        hf.pop("quantization_config", None)  # of the folder that the weights were dequantized from
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
    about = Adapter(adapter_dir, read_config(checkpoint_dir)).about
    if about["method"] != "lora":
        raise CheckpointError(f"{adapter_dir} is an {about['method']} adapter, which PEFT's format cannot hold. Only LoRA can")
    with unused_folder(Path(output_dir), "output_dir", [checkpoint_dir, adapter_dir]) as folder:
        model = load_model(checkpoint_dir, dtype=torch.float32)
        attach_adapter(model, adapter_dir)
        part = hf_names(model.config, checkpoint_dir).part
        linears = _peft_linears(model, part)
        tensors: dict[str, Tensor] = {}
        for target, (update, _) in linears.items():
            prefix = f"base_model.model.{target}.lora_"
            tensors |= {f"{prefix}A.weight": update.A, f"{prefix}B.weight": update.B}
            if update.magnitude is not None:
                tensors[f"{prefix}magnitude_vector"] = update.magnitude
        saved = _saved_weights(model, about["arguments"].get("modules_to_save", []), part)
        tensors |= {f"base_model.model.{name}": tensor for name, tensor in saved.items()}
        style = {} if about["prompt_style"] is None else {STYLE_KEY: about["prompt_style"]}
        if kwargs := about.get("template_kwargs"):
            style[TEMPLATE_KEY] = json.dumps(kwargs)
        save_safetensors(tensors, folder / PEFT_WEIGHTS[0], {"format": "pt", **style})
        config = _peft_config(model, checkpoint_dir, about["arguments"], linears)
        config["modules_to_save"] = sorted({name.rpartition(".")[0] for name in saved}) or None
        # ASCII: PEFT reads it in the locale's encoding.
        (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _peft_linears(model: GPT, part: TextPart | None) -> dict[str, tuple[LowRank, float]]:
    """Return the update of each upstream linear that the adapter changes, and its scale; `part` is of a multimodal model."""
    updates, found = lora_updates(model), {}
    if any(".experts." in name for name in updates):
        raise CheckpointError("the adapter changes experts, which transformers does not hold as linears. Merge it")
    for target, linear in upstream_linears(model, part).items():
        adapted = {part: updates[part] for part in linear.parts if part in updates}
        if not adapted:
            continue
        scales = [update.scale for update in adapted.values()]
        factors = {
            part: LowRank(
                update.A.detach(),
                update.B.detach() * (update.scale / scales[0]),  # one scale for all parts
                None if update.magnitude is None else update.magnitude.detach(),
            )
            for part, update in adapted.items()
        }
        norms: dict[str, Tensor] = {}
        if next(iter(adapted.values())).magnitude is not None:
            norms = {part: base_weight(model.get_submodule(part)).norm(dim=1) for part in linear.parts}
        found[target] = linear.join_updates(model.config, factors, norms), scales[0]
    return found


def _saved_weights(model: GPT, modules: Sequence[str], part: TextPart | None) -> dict[str, Tensor]:
    """Return the weights of modules that were trained in full, by upstream name."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if name.rpartition(".")[0] in modules}
    found = dict(to_hf(model.config, {name: lambda tensor=tensor: tensor for name, tensor in weights.items()}))
    renamed = {f"{old}.weight": f"{new}.weight" for old, new in RENAMED.items()}
    stored = {name: name if part is None else part.stored_names(name)[0] for name in found}
    return {renamed.get(name, stored[name]): tensor for name, tensor in found.items()}


def _peft_config(
    model: GPT, checkpoint_dir: Path, arguments: Mapping[str, Any], linears: Mapping[str, tuple[LowRank, float]]
) -> dict[str, Any]:
    """Return the contents of `adapter_config.json`."""
    ranks = {target: len(update.A) for target, (update, _) in linears.items()}
    # PEFT's scale is alpha / r, or alpha / sqrt(r)
    root = math.sqrt if arguments["use_rslora"] else float
    alphas = {target: scale * root(ranks[target]) for target, (_, scale) in linears.items()}
    entries = TABLES[model.config.model_type](model.config).values()
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(checkpoint_dir),
        "r": next(iter(ranks.values())),
        "lora_alpha": next(iter(alphas.values())),
        "lora_dropout": arguments["dropout"],
        "use_rslora": arguments["use_rslora"],
        "use_dora": arguments["use_dora"],
        "target_modules": sorted(ranks),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "fan_in_fan_out": any(isinstance(entry, Fused) and entry.transposed for entry in entries),
        "bias": "none",
        "inference_mode": True,
    }
