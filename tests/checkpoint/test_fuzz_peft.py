"""Damaged and hostile adapter folders of PEFT: an adapter that attaches, or an error that names the folder and the key."""

import copy
import json

import pytest
from fuzz import attach, fuzz, mutated_json, mutated_safetensors
from hypothesis import strategies as st
from test_peft_adapters import make_base, make_peft

from lit_llm.checkpoint.load_model import load_model

ADAPTERS = {
    "lists": ("llama", {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["norm"], "rank_pattern": {"q_proj": 2}}),
    "regex": ("llama", {"target_modules": r".*self_attn\.[qk]_proj", "use_dora": True, "exclude_modules": ["k_proj"]}),
    "fused": ("phi3", {"target_modules": ["qkv_proj"], "layers_to_transform": [0], "layers_pattern": "layers"}),
}
DRAWN = st.data()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An adapter folder of each kind, and a function that returns its base."""
    at, bases = tmp_path_factory.mktemp("peft"), {}
    for family in {family for family, _ in ADAPTERS.values()}:
        bases[family] = load_model(make_base(family, at / family))
    for name, (family, options) in ADAPTERS.items():
        make_peft(at / family, at / name, **options)
    return {name: (at / name, lambda family=family: copy.deepcopy(bases[family])) for name, (family, _) in ADAPTERS.items()}


@fuzz(st.sampled_from(sorted(ADAPTERS)), DRAWN)
def test_mutated_adapter_config(folders, name, data):
    folder, base = folders[name]
    config = json.loads((folder / "adapter_config.json").read_text())
    attach(base, folder, "adapter_config.json", data.draw(mutated_json(config)))


@fuzz(st.sampled_from(sorted(ADAPTERS)), DRAWN)
def test_mutated_adapter_model(folders, name, data):
    folder, base = folders[name]
    content = (folder / "adapter_model.safetensors").read_bytes()
    attach(base, folder, "adapter_model.safetensors", data.draw(mutated_safetensors(content)))
