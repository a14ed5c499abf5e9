"""Embedding and head: tied or not as the stored tensors say, in every reader and writer, as in transformers."""

import json
import warnings

import pytest
import torch
from families import Case, make_reference, random_ids, relative_difference
from lit_gpt import make_lit_gpt
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lit_llm.checkpoint.convert import convert
from lit_llm.checkpoint.export import export_hf
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.read import read_config

_SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    "gpt_neox": ("gpt_neox.embed_in.weight", "embed_out.weight"),
    "gpt2": ("transformer.wte.weight", "lm_head.weight"),
    "falcon": ("transformer.word_embeddings.weight", "lm_head.weight"),
}
# Whether config.json says tied, and what the file has next to or instead of the embedding -> whether they are tied.
STORED = {
    (True, "nothing"): True,
    (True, "same head"): True,
    (True, "other head"): False,
    (True, "head of another dtype"): False,
    (True, "only head"): True,
    (False, "same head"): False,
    (False, "other head"): False,
}


def make(folder, family, flag, stored):
    """A tiny checkpoint; return its case."""
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4} if family == "gpt2" else _SIZES
    case = Case(family, family, {**sizes, "tie_word_embeddings": True})
    make_reference(case, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": flag}))
    tensors, (embedding, head) = load_file(folder / "model.safetensors"), FAMILIES[family]
    weight = tensors[embedding]
    if stored == "only head":
        del tensors[embedding]
    if stored != "nothing":
        tensors[head] = weight + 0.3 * torch.randn_like(weight) if stored == "other head" else weight.clone()
    if stored == "head of another dtype":
        tensors[head] = weight.bfloat16()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return case


@pytest.mark.parametrize(("flag", "stored"), STORED)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings in config.json")
@torch.inference_mode()
def test_tied_as_stored_equals_transformers_there_and_back(family, flag, stored, tmp_path):
    folder = tmp_path / "hf"
    ids = random_ids(make(folder, family, flag, stored), 2, 20)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
    model = load_model(folder)
    assert model.config.tie_embeddings is STORED[flag, stored]
    assert relative_difference(model.float()(ids), expected) < 1e-5
    convert(folder)
    assert ("lm_head.weight" in load_file(folder / "lit_model.safetensors")) is not STORED[flag, stored]
    assert load_model(folder).fingerprint == model.fingerprint
    export_hf(folder, tmp_path / "back")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)(ids).logits
    assert relative_difference(again, expected) < 1e-5


@pytest.mark.parametrize(("flag", "stored", "said"), [(True, "other head", "untied"), (False, "nothing", "tied")])
def test_contradiction_of_config_and_tensors_is_said(flag, stored, said, tmp_path):
    make(tmp_path, "llama", flag, stored)
    with pytest.warns(UserWarning, match=f"tie_word_embeddings in config.json is {str(flag).lower()}, .* They are {said}"):
        assert load_model(tmp_path).config.tie_embeddings is (said == "tied")


def test_head_that_a_shard_lacks_is_missing_and_not_tied(tmp_path):
    make_reference(Case("llama", "llama", _SIZES), tmp_path, max_shard_size="40KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shard = tmp_path / index["weight_map"]["lm_head.weight"]
    tensors = load_file(shard)
    del tensors["lm_head.weight"]
    save_file(tensors, shard, {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors are missing, among them lm_head\.weight"):
        load_model(tmp_path)


def test_without_weights_the_flag_holds(tmp_path):
    make(tmp_path, "llama", True, "other head")
    (tmp_path / "model.safetensors").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_config(tmp_path).tie_embeddings


@pytest.mark.parametrize("kept", ["lm_head.weight", "transformer.wte.weight"])
def test_one_name_alone_is_enough_in_lit_gpt(kept, tmp_path):
    folder = tmp_path / "lit"
    make_lit_gpt(folder, "llama", "litgpt-0.5")
    tensors = torch.load(folder / "lit_model.pth", weights_only=True)
    del tensors[next(name for name in ("lm_head.weight", "transformer.wte.weight") if name != kept)]
    torch.save(tensors, folder / "lit_model.pth")
    convert(folder)
    model = load_model(folder)
    assert model.config.tie_embeddings and torch.equal(model.wte.weight, tensors[kept])
