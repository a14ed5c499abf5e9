"""From Hugging Face's layout to ours."""

from pathlib import Path

import torch

from lit_llm.checkpoint import LIT_WEIGHTS, checked, read_config, read_tensors, weight_files, write_shards
from lit_llm.config import LIT_CONFIG, Config
from lit_llm.files import new_folder, write_json
from lit_llm.weights import to_lit


def convert_hf(checkpoint_dir: Path, dtype: str | None = None) -> None:
    """Write our weights and `lit_config.json` beside a Hugging Face checkpoint. Holds one shard in memory.

    Args:
        dtype: Name of a torch dtype; None keeps each tensor's.

    Raises:
        FileNotFoundError, ValueError: as `load_model`; an earlier result stays as it was.
    """
    read_config(checkpoint_dir)
    config = Config.from_file(checkpoint_dir / "config.json")
    tensors = checked(config, to_lit(config, read_tensors(weight_files(checkpoint_dir, native=False))), checkpoint_dir)
    if dtype is not None:
        tensors = ((name, tensor.to(getattr(torch, dtype))) for name, tensor in tensors)
    with new_folder(checkpoint_dir / ".converted") as folder:
        write_shards(tensors, folder, LIT_WEIGHTS)
        write_json(folder / LIT_CONFIG, config.to_dict())
    for old in [checkpoint_dir / LIT_CONFIG, *checkpoint_dir.glob("lit_model*")]:
        old.unlink(missing_ok=True)
    # The config goes last: with it the folder becomes one of ours.
    for new in sorted((checkpoint_dir / ".converted").iterdir(), key=lambda path: path.name == LIT_CONFIG):
        new.rename(checkpoint_dir / new.name)
    (checkpoint_dir / ".converted").rmdir()
    print(f"Converted. Try it: python generate/base.py --checkpoint_dir {checkpoint_dir} --prompt 'Hello'")
