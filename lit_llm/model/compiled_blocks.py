"""Blocks compiled by torch.compile, for training."""

import torch

from lit_llm.errors import OptionError
from lit_llm.model.attention import Documents
from lit_llm.model.gpt import GPT


def compile_blocks(model: GPT) -> None:
    """Compile the blocks of `model` for passes without a cache. All blocks share one compilation, for any number of tokens.

    Raises:
        OptionError: if this machine cannot compile for the device of the model; found by compiling a small function.
    """
    device = model.device
    try:
        torch.compile(lambda x: (x + 1).relu())(torch.zeros(8, device=device))
    except Exception as error:  # a missing compiler, Triton or header: each backend raises its own errors
        needed = "a C++ compiler" if device.type == "cpu" else "Triton and a C compiler"
        reason = str(error).strip().splitlines()[0]
        raise OptionError(
            f"`train.compile`: torch.compile does not work here on {device.type} ({reason}). Install {needed}, or omit it"
        ) from error
    # Here and not where it is defined, since importing the compiler takes a second.
    Documents.attend = torch.compiler.disable(Documents.attend)  # type: ignore[method-assign]
    model.run_block = torch.compile(model.run_block, dynamic=True)
