"""Tiny random checkpoints and data, made on the fly with transformers and tokenizers."""

import json
import random
from pathlib import Path

import torch

WORDS = "the a red blue cat dog bird sees eats likes small big house tree river of and in on to".split()


def make_tokenizer(folder: Path, vocab_size: int = 300) -> None:
    """A byte-level BPE tokenizer with <s> and </s>, which adds BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


def hf_model(model_type: str = "llama", seed: int = 0, **changes):
    """A transformers model in eval mode whose parameters, norms and biases included, are random."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {**SIZES, **({} if model_type == "falcon" else {"intermediate_size": 48}), **changes}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(center, 0.2)
    return model.float()


def make_checkpoint(folder: Path, model_type: str = "llama", seed: int = 0, **changes) -> Path:
    """A Hugging Face folder with a tokenizer. Returns it."""
    hf_model(model_type, seed, **changes).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)  # its default EOS id is not this tokenizer's
    make_tokenizer(folder)
    return folder


def make_endless_checkpoint(folder: Path) -> Path:
    """A checkpoint whose answers go on for 32,768 tokens: no token ends them. Returns it."""
    make_checkpoint(folder, max_position_embeddings=32768)
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    return folder


def rows(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Instruction rows of very different lengths."""
    draw = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, most)))

    return [{"instruction": text(12), "input": text(6) if draw.random() < 0.4 else "", "output": text(15)} for _ in range(n)]


def make_data(folder: Path, n_train: int = 20, n_val: int = 4) -> Path:
    folder.mkdir(parents=True)
    for name, n, seed in (("train", n_train, 1), ("val", n_val, 2)):
        text = "".join(json.dumps(row) + "\n" for row in rows(n, seed))
        (folder / f"{name}.jsonl").write_text(text)
    return folder
