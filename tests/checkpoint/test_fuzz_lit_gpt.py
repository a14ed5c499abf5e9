"""Mutated configurations of Lit-GPT and litgpt: a config, or an error that names the file and a key."""

import json

import pytest
import torch
import yaml
from fuzz import Deep, fuzz, mutated, mutated_json, result_or_clear_error
from hypothesis import strategies as st
from lit_gpt import CONFIGS, SIZES

from lit_llm.checkpoint.lit_gpt import read_lit_gpt
from lit_llm.errors import CheckpointError

GIVEN = [{"name": "m", "org": "o", **SIZES, **config} for config in CONFIGS.values()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lit_gpt")
    torch.save({}, folder / "lit_model.pth")
    return folder


@fuzz(st.sampled_from(GIVEN).flatmap(mutated_json))
def test_mutated_json_of_lit_gpt(folder, content):
    (folder / "lit_config.json").write_bytes(content)
    with result_or_clear_error("lit_config.json", errors=(CheckpointError,)):
        read_lit_gpt(folder, folder / "lit_config.json")


BROKEN = [Deep(b"[" * 2000), b"a: &a [*a]", b"a: 0x", b"a: 99-99-99", b"\0", b"\xff", b"{a: 1, a: 2}"]


@fuzz(st.sampled_from(GIVEN).flatmap(mutated).map(lambda config: yaml.dump(config).encode()) | st.sampled_from(BROKEN))
def test_mutated_yaml_of_litgpt(folder, content):
    (folder / "model_config.yaml").write_bytes(content)
    with result_or_clear_error("model_config.yaml", errors=(CheckpointError,)):
        read_lit_gpt(folder, folder / "model_config.yaml")


def test_two_thousand_million_layers_are_refused_at_once(folder):
    """Before a list with an entry for each of them fills the memory."""
    (folder / "lit_config.json").write_text(json.dumps({**GIVEN[0], "n_layer": 2**31 - 1}))
    with pytest.raises(CheckpointError, match=r"lit_config.json: n_layer must be a positive integer"):
        read_lit_gpt(folder, folder / "lit_config.json")
