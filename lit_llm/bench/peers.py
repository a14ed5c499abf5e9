"""One LoRA training step of this package and of its peers, each the way its own documentation says, on the same weights."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from lit_llm.args.finetune import TrainArgs
from lit_llm.checkpoint.load_model import load_model
from lit_llm.data.batches import StepPlan
from lit_llm.data.examples import Example
from lit_llm.methods.lora import LoRA
from lit_llm.methods.loss import next_token_loss
from lit_llm.training.loop import optimizer_step
from lit_llm.training.objective import Objective
from lit_llm.training.optimizers import make_optimizer

R, ALPHA, LEARNING_RATE = 8, 16, 3e-4

Step = Callable[[Sequence[Example]], float]
"""One optimizer step over examples; the mean of the losses of its micro-batches, or the mean over its labels."""


@dataclass(frozen=True)
class Contender:
    name: str
    settings: str
    build: Callable[[Path, int], Step]
    """From the folder of a Hugging Face checkpoint and the size of a micro-batch."""


def lit_llm_step(folder: Path, micro_batch_size: int) -> Step:
    method = LoRA(R, ALPHA, dropout=0.0, targets="q,v")
    model = load_model(folder, dtype=torch.float32)
    method.attach(model)
    args = TrainArgs(learning_rate=LEARNING_RATE, micro_batch_size=micro_batch_size)
    optimizer = make_optimizer(model, method, args, torch.device("cpu"))
    fabric = Fabric(accelerator="cpu", devices=1)
    objective, optimizer = fabric.setup(Objective(model, next_token_loss), optimizer)
    objective.train()

    def step(examples: Sequence[Example]) -> float:
        plan = StepPlan([len(e) for e in examples], len(examples), micro_batch_size, 512, packing=True, seed=0)
        groups = plan.pack(range(len(examples)))
        return optimizer_step(fabric, objective, optimizer, groups, examples, LEARNING_RATE, args.max_norm)["train_loss"].item()

    return step


def peft_step(folder: Path, micro_batch_size: int) -> Step:
    """https://huggingface.co/docs/peft/quicktour and https://huggingface.co/docs/transformers/tasks/language_modeling."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    targets = ["query_key_value"] if base.config.model_type == "gpt_neox" else ["q_proj", "v_proj"]
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=R, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets)
    model = get_peft_model(base, config)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, fused=True)

    def step(examples: Sequence[Example]) -> float:
        losses = []
        groups = _split(examples, micro_batch_size)
        for group in groups:
            ids, labels, mask = pad(group)
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            (loss / len(groups)).backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        return sum(losses) / len(losses)

    return step


def litgpt_step(folder: Path, micro_batch_size: int) -> Step:
    """litgpt/finetune/lora.py of litgpt: padded batches, the head in chunks of 128 positions."""
    from litgpt.lora import GPT, mark_only_lora_as_trainable  # type: ignore[import-not-found]
    from litgpt.utils import chunked_cross_entropy  # type: ignore[import-not-found]

    model = GPT(litgpt_config(folder))
    model.load_state_dict({**model.state_dict(), **litgpt_weights(model, folder)})  # its LoRA weights are new
    mark_only_lora_as_trainable(model)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, fused=True)

    def step(examples: Sequence[Example]) -> float:
        losses = []
        groups = _split(examples, micro_batch_size)
        for group in groups:
            ids, labels, _ = pad(group)
            logits = model(ids, lm_head_chunk_size=128)
            logits[-1] = logits[-1][..., :-1, :]
            loss = chunked_cross_entropy(logits, labels[..., 1:])
            (loss / len(groups)).backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        return sum(losses) / len(losses)

    return step


def litgpt_config(folder: Path) -> Any:
    from litgpt.lora import Config  # type: ignore[import-not-found]
    from transformers import AutoConfig

    c: Any = AutoConfig.from_pretrained(folder)
    common = {
        "block_size": c.max_position_embeddings, "n_layer": c.num_hidden_layers, "n_embd": c.hidden_size,
        "n_head": c.num_attention_heads, "vocab_size": c.vocab_size, "padded_vocab_size": c.vocab_size,
        "intermediate_size": c.intermediate_size, "lora_r": R, "lora_alpha": ALPHA, "lora_query": True, "lora_value": True,
    }  # fmt: skip
    if c.model_type == "gpt_neox":
        return Config(**common, rotary_percentage=0.25)
    llama = {"rotary_percentage": 1.0, "parallel_residual": False, "bias": False, "norm_class_name": "RMSNorm"}
    return Config(**common, **llama, mlp_class_name="LLaMAMLP", norm_eps=c.rms_norm_eps)


def litgpt_weights(model: Any, folder: Path) -> dict[str, Tensor]:
    from litgpt.scripts.convert_hf_checkpoint import (  # type: ignore[import-not-found]
        copy_weights_gpt_neox,
        copy_weights_hf_llama,
    )
    from safetensors.torch import load_file

    weights, found = load_file(folder / "model.safetensors"), {}
    if "gpt_neox.embed_in.weight" in weights:
        copy_weights_gpt_neox(model.config, found, weights)
    else:
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])  # tied
        copy_weights_hf_llama(model.config, {}, found, weights)
    renamed = {key: key.replace(".weight", ".linear.weight").replace(".bias", ".linear.bias") for key in found}
    own = model.state_dict()
    return {renamed[key] if renamed[key] in own else key: value for key, value in found.items()}


def _split(examples: Sequence[Example], size: int) -> list[Sequence[Example]]:
    return [examples[i : i + size] for i in range(0, len(examples), size)]


def pad(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels (-100 where nothing is trained) and attention mask, (B, T) each, padded on the right."""
    longest = max(map(len, examples))
    ids, labels, mask = (torch.full((len(examples), longest), fill) for fill in (0, -100, 0))
    for row, example in enumerate(examples):
        n = len(example)
        ids[row, :n], mask[row, :n] = example.ids.long(), 1
        labels[row, :n] = example.ids.long().where(example.trained, -100)
    return ids, labels, mask


def contenders() -> list[Contender]:
    """This package first, then the peers that are installed."""
    found = [Contender("lit_llm", "packing, head at labelled positions only (both default)", lit_llm_step)]
    if importlib.util.find_spec("peft") and importlib.util.find_spec("transformers"):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        versions = f"peft {version('peft')}, transformers {version('transformers')}"
        told = f"{versions}: padded batches with attention mask, model(...).loss"
        found.append(Contender("peft", told, peft_step))
    if importlib.util.find_spec("litgpt"):
        told = f"litgpt {version('litgpt')}: padded batches, lm_head_chunk_size 128, as in litgpt/finetune/lora.py"
        found.append(Contender("litgpt", told, litgpt_step))
    return found
