"""Damaged and hostile adapter folders: an adapter that attaches, or an error that names the file and the key."""

import copy
import json

import pytest
from fuzz import attach, fuzz, mutated_json, mutated_safetensors, result_or_clear_error
from hypothesis import strategies as st
from methods import METHODS

from lit_llm.checkpoint.adapters import trained_style, write_adapter
from lit_llm.checkpoint.load_model import load_model
from lit_llm.errors import CheckpointError

ADAPTERS = ("lora", "dora", "adapter", "adapter_v2", "ia3")
DRAWN = st.data()


@pytest.fixture(scope="module")
def base(checkpoint):
    model = load_model(checkpoint)
    return lambda: copy.deepcopy(model)


@pytest.fixture(scope="module")
def folders(checkpoint, base, tmp_path_factory):
    """An adapter folder of each method."""
    found = {}
    for name in ADAPTERS:
        found[name] = tmp_path_factory.mktemp(name)
        model, method = base(), METHODS[name]()
        method.attach(model)
        write_adapter(found[name], model, method, checkpoint, "alpaca")
    return found


@fuzz(st.sampled_from(ADAPTERS), DRAWN)
def test_mutated_adapter_json(base, folders, method, data):
    folder = folders[method]
    attach(base, folder, "adapter.json", data.draw(mutated_json(json.loads((folder / "adapter.json").read_text()))))


@fuzz(st.sampled_from(ADAPTERS), DRAWN)
def test_mutated_adapter_safetensors(base, folders, method, data):
    path = folders[method] / "adapter.safetensors"
    attach(base, path.parent, path.name, data.draw(mutated_safetensors(path.read_bytes())))


@fuzz(mutated_json({"method": "full", "arguments": {}, "base_fingerprint": "0", "prompt_style": "alpaca", "versions": {}}))
def test_mutated_finetuned_json(tmp_path, content):
    (tmp_path / "finetuned.json").write_bytes(content)
    with result_or_clear_error("finetuned.json", errors=(CheckpointError,)):
        trained_style(tmp_path)
