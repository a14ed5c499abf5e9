"""Finetune, run and evaluate open LLMs on the hardware you have."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_llm.api import LLM, finetune, load_llm
    from lit_llm.args.finetune import (
        AdapterFinetuneArgs,
        AdapterV2FinetuneArgs,
        DPOFinetuneArgs,
        EvalArgs,
        FullFinetuneArgs,
        IA3FinetuneArgs,
        LoRAArgs,
        LoRAFinetuneArgs,
        TrainArgs,
    )
    from lit_llm.checkpoint.load import load
    from lit_llm.errors import CheckpointError, DataError, LitError, OptionError, OutOfMemory
    from lit_llm.model.config import Config
    from lit_llm.model.gpt import GPT
    from lit_llm.text.tokenizer import Tokenizer
    from lit_llm.training.run import Run

__version__ = "0.1.0"

__all__ = [
    "GPT", "LLM", "AdapterFinetuneArgs", "AdapterV2FinetuneArgs", "CheckpointError", "Config", "DPOFinetuneArgs", "DataError",
    "EvalArgs", "FullFinetuneArgs", "IA3FinetuneArgs", "LitError", "LoRAArgs", "LoRAFinetuneArgs", "OptionError", "OutOfMemory",
    "Run", "Tokenizer", "TrainArgs", "finetune", "load", "load_llm",
]  # fmt: skip

_HOMES = {
    "GPT": "model.gpt", "Config": "model.config", "Tokenizer": "text.tokenizer", "load": "checkpoint.load",
    "LLM": "api", "Run": "training.run", "finetune": "api", "load_llm": "api",
}  # fmt: skip


def __getattr__(name: str) -> object:
    """Import on first use: `--help` must not import torch."""
    if name not in __all__:
        raise AttributeError(f"module 'lit_llm' has no attribute {name!r}")
    home = _HOMES.get(name, "args.finetune" if name.endswith("Args") else "errors")
    return getattr(import_module(f"lit_llm.{home}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
