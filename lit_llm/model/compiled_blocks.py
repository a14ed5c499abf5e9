"""Blocks compiled by torch.compile, for training."""

import torch

from lit_llm.model.attention import Documents
from lit_llm.model.delta_net import DeltaNet
from lit_llm.model.gpt import GPT


def compile_blocks(model: GPT) -> None:
    """Compile the blocks of `model` for passes without a cache. All blocks share one compilation, for any number of tokens."""
    # Here and not where it is defined, since importing the compiler takes a second.
    # The number of documents and of chunks would be compiled in.
    DeltaNet.heads = torch.compiler.disable(DeltaNet.heads)  # type: ignore[method-assign]
    Documents.attend = torch.compiler.disable(Documents.attend)  # type: ignore[method-assign]
    model.run_block = torch.compile(model.run_block, dynamic=True)
