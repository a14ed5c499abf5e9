"""Mutated configs: a model that can be built, or an error that names a key of the file."""

import json
import re
import warnings
from dataclasses import fields, replace

import pytest
from cases_text_parts import TEXT_PART_CASES
from families import CASES
from fuzz import fuzz, mutated_json, result_or_clear_error
from hypothesis import strategies as st
from transformers import AutoConfig

from lit_llm.checkpoint.read import empty_model
from lit_llm.errors import CheckpointError
from lit_llm.model.config import LIT_CONFIG, Config

FIELDS = [f.name for f in fields(Config)]


def published(case):
    """The config.json of a case, without what transformers writes into every one."""
    config = AutoConfig.for_model(case.family, vocab_size=case.vocab_size, **case.sizes).to_diff_dict()
    return {**{k: v for k, v in config.items() if k not in case.drop}, "model_type": case.family, **case.old_keys}


CONFIGS = [published(case) for case in CASES]
CONFIGS += [{"model_type": model_type, **sizes} for model_type, sizes in TEXT_PART_CASES.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("config")


def build(path, content):
    """Read the config, and build a model of it if it is about as small as the original."""
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unknown keys
        config = Config.from_file(path)
    json.dumps(config.to_dict(), allow_nan=False)
    if config.n_layer <= 8 and config.n_expert <= 8:
        empty_model(config)


@fuzz(st.sampled_from(CONFIGS).flatmap(mutated_json))
def test_mutated_config_json(folder, content):
    keys = {key for config in CONFIGS for key in re.findall(r'"(\w+)":', json.dumps(config))}
    with result_or_clear_error(*keys, *FIELDS, "JSON", "must be an object", errors=(CheckpointError,)):
        build(folder / "config.json", content)


@fuzz(st.sampled_from([Config.from_hf(config).to_dict() for config in CONFIGS]).flatmap(mutated_json))
def test_mutated_lit_config_json(folder, content):
    with result_or_clear_error(*FIELDS, "JSON", "must be an object", errors=(CheckpointError,)):
        build(folder / LIT_CONFIG, content)


@pytest.mark.parametrize("name", ["norm", "mlp", "activation", "qk_norm", "router_score"])
def test_a_long_value_is_shortened(name):
    with pytest.raises(CheckpointError, match=f"^{name} must be one of") as told:
        replace(Config.from_hf({"model_type": "llama", "vocab_size": 99}), **{name: "soft" + "9" * 3000})
    assert len(str(told.value)) < 500
