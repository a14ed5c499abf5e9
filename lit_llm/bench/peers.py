"""One LoRA training step of this package and of its peers on the same weights, each as its own documentation describes."""

import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from lit_llm.args.finetune import TrainArgs
from lit_llm.checkpoint.load_model import load_model
from lit_llm.data.batches import pack
from lit_llm.data.examples import Example
from lit_llm.methods.inject import Method
from lit_llm.methods.lora import LoRA
from lit_llm.methods.loss import next_token_loss
from lit_llm.training.loop import optimizer_step
from lit_llm.training.objective import Objective
from lit_llm.training.optimizers import make_optimizer

R, ALPHA, LEARNING_RATE = 8, 16, 3e-4

Step = Callable[[Sequence[Example]], float]
"""One optimizer step over examples. Returns the mean of the losses of its micro-batches, or the mean over its labels."""


class Contender(NamedTuple):
    settings: str
    build: Callable[[Path, int], Step]
    """From the folder of a Hugging Face checkpoint and the size of a micro-batch."""


def contenders() -> dict[str, Contender]:
    """Return this package, then the peers that are installed."""
    found = {"lit_llm": Contender("packing, head at labelled positions only (both default)", lit_llm_step)}
    if importlib.util.find_spec("peft") and importlib.util.find_spec("transformers"):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        versions = f"peft {version('peft')}, transformers {version('transformers')}"
        found["peft"] = Contender(f"{versions}: padded batches with attention mask, model(...).loss", peft_step)
    if importlib.util.find_spec("litgpt"):
        how = "padded batches, lm_head_chunk_size 128, as in litgpt/finetune/lora.py"
        found["litgpt"] = Contender(f"litgpt {version('litgpt')}: {how}", litgpt_step)
    return found


def training_speeds(
    steps: Mapping[str, Step], drawn: Iterable[Sequence[Example]]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Run every step on the same examples in turn, so that a busy machine slows all of them alike.

    Returns:
        Tokens (padding not counted) per CPU-second of each, and the losses of the first repetition, which only warms up.
    """
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    first_losses: dict[str, float] = {}
    for examples in drawn:
        for name, step in steps.items():
            start = time.process_time()
            loss = step(examples)
            seconds = time.process_time() - start
            if name in first_losses:
                speeds[name].append(sum(map(len, examples)) / seconds)
            else:
                first_losses[name] = loss
    return speeds, first_losses


class Training:
    """A float32 model with its method and optimizer on one CPU."""

    def __init__(self, folder: Path, method: Method, args: TrainArgs, quantize: str | None = None) -> None:
        self.model, self.args = load_model(folder, dtype=torch.float32, quantize=quantize), args
        method.attach(self.model)
        optimizer = make_optimizer(self.model, method, args, torch.device("cpu"))
        self.fabric = Fabric(accelerator="cpu", devices=1)
        self.objective, self.optimizer = self.fabric.setup(Objective(self.model, next_token_loss), optimizer)
        self.objective.train()

    def step(self, groups: Sequence[Sequence[int]], examples: Sequence[Example]) -> float:
        """Make an optimizer step over micro-batches of indices and return the mean loss."""
        run, args = (self.fabric, self.objective, self.optimizer), self.args
        return optimizer_step(*run, groups, examples, args.learning_rate, args.max_norm)["train_loss"].item()


def lora_training(folder: Path) -> Training:
    return Training(folder, LoRA(R, ALPHA, dropout=0.0, targets="q,v"), TrainArgs(learning_rate=LEARNING_RATE))


def lit_llm_step(folder: Path, micro_batch_size: int) -> Step:
    training = lora_training(folder)

    def step(examples: Sequence[Example]) -> float:
        groups = pack(range(len(examples)), [len(e) for e in examples], micro_batch_size, 512, packing=True)
        return training.step(groups, examples)

    return step


def peft_step(folder: Path, micro_batch_size: int) -> Step:
    """https://huggingface.co/docs/peft/quicktour and https://huggingface.co/docs/transformers/tasks/language_modeling."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    targets = ["query_key_value"] if base.config.model_type == "gpt_neox" else ["q_proj", "v_proj"]
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=R, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets)
    model: Any = get_peft_model(base, config)

    def loss(ids: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    return _padded_step(model, micro_batch_size, loss)


def litgpt_step(folder: Path, micro_batch_size: int) -> Step:
    """litgpt/finetune/lora.py of litgpt: padded batches, the head in chunks of 128 positions."""
    from litgpt.lora import GPT, mark_only_lora_as_trainable  # type: ignore[import-not-found]
    from litgpt.utils import chunked_cross_entropy  # type: ignore[import-not-found]

    model = GPT(litgpt_config(folder))
    model.load_state_dict({**model.state_dict(), **litgpt_weights(model, folder)})  # its LoRA weights are new
    mark_only_lora_as_trainable(model)

    def loss(ids: Tensor, labels: Tensor, _: Tensor) -> Tensor:
        logits = model(ids, lm_head_chunk_size=128)
        logits[-1] = logits[-1][..., :-1, :]
        return chunked_cross_entropy(logits, labels[..., 1:])

    return _padded_step(model, micro_batch_size, loss)


def _padded_step(model: nn.Module, size: int, loss_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Step:
    """Average the losses of padded micro-batches, as the loops of both peers do. `loss_of` takes ids, labels and mask."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, fused=True)

    def step(examples: Sequence[Example]) -> float:
        losses, groups = [], [examples[i : i + size] for i in range(0, len(examples), size)]
        for group in groups:
            loss = loss_of(*pad(group))
            (loss / len(groups)).backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        return sum(losses) / len(losses)

    return step


def pad(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, labels (-100 where nothing is trained) and attention mask, (B, T) each, padded on the right."""
    longest = max(map(len, examples))
    ids, labels, mask = (torch.full((len(examples), longest), fill) for fill in (0, -100, 0))
    for row, example in enumerate(examples):
        n = len(example)
        ids[row, :n], mask[row, :n] = example.ids.long(), 1
        labels[row, :n] = example.ids.long().where(example.trained, -100)
    return ids, labels, mask


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
    from litgpt.scripts import convert_hf_checkpoint as convert  # type: ignore[import-not-found]
    from safetensors.torch import load_file

    weights, found = load_file(folder / "model.safetensors"), {}
    if "gpt_neox.embed_in.weight" in weights:
        convert.copy_weights_gpt_neox(model.config, found, weights)
    else:
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])  # tied
        convert.copy_weights_hf_llama(model.config, {}, found, weights)
    own = model.state_dict()
    renamed = {key: key.replace(".weight", ".linear.weight").replace(".bias", ".linear.bias") for key in found}
    return {renamed[key] if renamed[key] in own else key: value for key, value in found.items()}
