"""Shapes of models that are measured with random weights."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

Shape = dict[str, Any]
"""Fields of a `config.json`."""


def shape(
    model_type: str, vocab_size: int, hidden_size: int, n_layer: int, n_head: int, intermediate_size: int, **more: Any
) -> Shape:
    return {
        "model_type": model_type, "vocab_size": vocab_size, "hidden_size": hidden_size, "num_hidden_layers": n_layer,
        "num_attention_heads": n_head, "intermediate_size": intermediate_size, "max_position_embeddings": 2048, **more,
    }  # fmt: skip


SHAPES = {
    "pythia-70m": shape("gpt_neox", 50304, 512, 6, 8, 2048),
    "llama-6x512": shape("llama", 32000, 512, 6, 8, 1376),
    "llama-100m": shape("llama", 18176, 768, 12, 12, 2048, tie_word_embeddings=True),  # 14 % of its weights are the head
}
"""Shapes for the option `shapes`."""


@contextmanager
def random_checkpoint(fields: Shape) -> Iterator[Path]:
    """Yield a temporary Hugging Face folder with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {name: value for name, value in fields.items() if name != "model_type"}
    with tempfile.TemporaryDirectory() as folder:
        config = AutoConfig.for_model(fields["model_type"], **sizes)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        yield Path(folder)
