"""Read the tensors of a GGUF file, dequantized one at a time."""

import math
from collections.abc import Iterator
from pathlib import Path

from lit_llm.checkpoint.gguf_config import architecture, config_of, hf_config
from lit_llm.checkpoint.gguf_names import ROPE_TENSORS, from_gguf_layout, gguf_names
from lit_llm.checkpoint.gguf_tensors import check_complete, read_tensor
from lit_llm.checkpoint.tensor_names import Names, Reader
from lit_llm.files import json_text
from lit_llm.model.config import Config
from lit_llm.text.gguf_file import GGUF, read_gguf
from lit_llm.text.gguf_tokenizer import tokenizer_files


def gguf_config(path: Path) -> Config:
    """Return the config of a GGUF file. Raises CheckpointError as `config_of`."""
    return config_of(read_gguf(path))


def gguf_companions(path: Path) -> dict[str, bytes]:
    """Return the contents of the files that upstream ships with the weights: config and tokenizer."""
    file = read_gguf(path)
    return {"config.json": json_text(hf_config(file), indent=2).encode(), **tokenizer_files(file)}


def gguf_tensors(path: Path, config: Config) -> tuple[Names, Iterator[tuple[str, Reader]]]:
    """Return the names in a GGUF file, and its tensors in upstream's layout: float32 where they are quantized."""
    file = read_gguf(path)
    check_complete(file)
    return gguf_names(config, architecture(file)), _tensors(file, config)


def _tensors(file: GGUF, config: Config) -> Iterator[tuple[str, Reader]]:
    arch = architecture(file)
    # The largest first: a dequantized tensor is in float32 next to what it becomes, and now there is little else in memory.
    for name, info in sorted(file.tensors.items(), key=lambda named: -math.prod(named[1].shape)):
        if name in ROPE_TENSORS:
            continue
        yield name, lambda name=name, info=info: from_gguf_layout(read_tensor(name, info), name, config, arch)
