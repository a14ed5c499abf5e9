"""Damaged and hostile weight files: weights that load, or an error that names the file."""

import json
import shutil

import pytest
import torch
from fuzz import fuzz, mutated_bytes, mutated_json, mutated_safetensors, result_or_clear_error
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import make_checkpoint

from lit_llm.checkpoint.load_model import load_model
from lit_llm.errors import CheckpointError

DRAWN = st.data()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    sizes = dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 1)
    sizes |= {"hidden_size": 4, "intermediate_size": 4}
    return make_checkpoint(tmp_path_factory.mktemp("weights") / "base", **sizes)


@pytest.fixture(scope="module")
def indexed(base, tmp_path_factory):
    """The same in two shards with an index."""
    folder = shutil.copytree(base, tmp_path_factory.mktemp("weights") / "indexed")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"shard-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        save_file({name: tensor for name, tensor in tensors.items() if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.fixture(scope="module")
def pickled(base, tmp_path_factory):
    folder = shutil.copytree(base, tmp_path_factory.mktemp("weights") / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def load(path, content):
    """Load a folder whose file `path` has another content."""
    original = path.read_bytes()
    path.write_bytes(content)
    try:
        with result_or_clear_error(str(path.parent), errors=(CheckpointError, FileNotFoundError)):
            load_model(path.parent)
    finally:
        path.write_bytes(original)


@fuzz(DRAWN)
def test_mutated_safetensors(base, data):
    path = base / "model.safetensors"
    load(path, data.draw(mutated_safetensors(path.read_bytes())))


@fuzz(DRAWN)
def test_mutated_index(indexed, data):
    path = indexed / "model.safetensors.index.json"
    load(path, data.draw(mutated_json(json.loads(path.read_text()))))


@fuzz(DRAWN)
def test_mutated_pickle(pickled, data):
    path = pickled / "pytorch_model.bin"
    load(path, data.draw(mutated_bytes(path.read_bytes())))
