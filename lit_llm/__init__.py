"""Finetune, run and evaluate open LLMs on the hardware you have."""

from importlib import import_module

__version__ = "0.1.0"

_LAZY = {
    "GPT": "lit_llm.model.gpt",
    "Config": "lit_llm.model.config",
    "Tokenizer": "lit_llm.text.tokenizer",
    "load": "lit_llm.checkpoint.load",
}
__all__ = ["GPT", "Config", "Tokenizer", "load"]


def __getattr__(name: str):
    """Import on first use: `--help` must not import torch."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'lit_llm' has no attribute {name!r}")
