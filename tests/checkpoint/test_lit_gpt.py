"""Checkpoints of Lit-GPT (2023) and litgpt are read with the logits that the same weights have in transformers."""

import pickle
import shutil
import warnings

import pytest
import torch
from families import random_ids, relative_difference
from lit_gpt import CONFIGS, make_lit_gpt
from transformers import AutoModelForCausalLM

from lit_llm.checkpoint.convert import convert
from lit_llm.checkpoint.export import export_hf
from lit_llm.checkpoint.load_model import load_model

ONLY_LITGPT = ("llama3.1", "qwen2")  # Lit-GPT had no such models
GENERATIONS = ("lit-gpt", "litgpt-0.4", "litgpt-0.5")


@torch.no_grad()
def difference(folder, case, reference):
    ids = random_ids(case, 2, 40)
    return relative_difference(load_model(folder).eval()(ids), reference(ids).logits)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name, generation, tmp_path):
    if generation != "litgpt-0.5" and name in ONLY_LITGPT:
        pytest.skip("no model of that generation has this")
    folder = tmp_path / "lit"
    case, reference = make_lit_gpt(folder, name, generation)
    convert(folder)
    assert difference(folder, case, reference) < 1e-5
    # Back in transformers, with its config.json put beside the weights before the conversion.
    shutil.copyfile(tmp_path / "hf" / "config.json", folder / "config.json")
    convert(folder)
    export_hf(folder, tmp_path / "back")
    with torch.no_grad():
        ids = random_ids(case, 2, 40)
        back = AutoModelForCausalLM.from_pretrained(tmp_path / "back")(ids).logits
        assert relative_difference(back, reference(ids).logits) < 1e-5


def test_no_file_of_the_user_is_lost(tmp_path):
    folder = tmp_path / "lit"
    make_lit_gpt(folder, "gpt_neox", "lit-gpt")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    convert(folder, "bfloat16")
    convert(folder)  # again, from the renamed configuration
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after["lit_gpt_config.json"] == before.pop("lit_config.json")
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {"lit_gpt_config.json", "lit_config.json", "lit_model.safetensors"}
    assert load_model(folder).wte.weight.dtype == torch.float32


def test_padded_vocabulary_and_a_state_of_fabric(tmp_path):
    """Rows beyond the vocabulary stay; litgpt's own training saves the weights under the key "model"."""
    folder = tmp_path / "lit"
    make_lit_gpt(folder, "llama", "litgpt-0.5", padded_vocab_size=None, padding_multiple=64)
    tensors = torch.load(folder / "lit_model.pth", weights_only=True)
    for name in ("lm_head.weight", "transformer.wte.weight"):
        tensors[name] = torch.cat([tensors[name], torch.ones(128 - 99, 32)])
    torch.save({"model": tensors}, folder / "lit_model.pth")
    convert(folder)
    model = load_model(folder)
    assert model.config.vocab_size == 128
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, 128)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_unconverted_folder_says_what_to_do(generation, tmp_path):
    make_lit_gpt(tmp_path / "lit", "llama", generation)
    with pytest.raises(ValueError, match="Convert it first: python scripts/convert_hf_checkpoint"):
        load_model(tmp_path / "lit")
    shutil.copyfile(tmp_path / "hf" / "config.json", tmp_path / "lit" / "config.json")
    with pytest.raises(ValueError, match="Convert it first"):
        load_model(tmp_path / "lit")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"latent_attention": {"q_lora_rank": 4}}, "latent_attention"),
        ({"warp_factor": 9}, "fields that are not understood: warp_factor"),
        ({"norm_class_name": "BatchNorm"}, "norm_class_name = 'BatchNorm'"),
        ({"mlp_class_name": "KAN"}, "mlp_class_name = 'KAN'"),
        ({"gelu_approximate": "sigmoid"}, "gelu_approximate"),
        ({"rope_interleave": True}, "rope_interleave"),
        ({"n_shared_expert": 1}, "n_shared_expert"),
        ({"routed_scaling_factor": 2.5}, "routed_scaling_factor"),
        ({"rope_adjustments": {"factor": 2.0, "beta_fast": 32}}, "rope_adjustments with beta_fast, factor"),
        ({"rope_adjustments": {"factor": 2.0}, "rope_condense_ratio": 2}, "rope_condense_ratio together"),
        ({"norm_1": False}, "norm_1 and norm_2"),
        ({"parallel_residual": True, "post_attention_norm": True, "post_mlp_norm": True}, "parallel_residual"),
        ({"shared_attention_norm": True}, "shared_attention_norm"),
        ({"rope_local_base_freq": 10000.0}, "rope_indices"),
        ({"mlp_class_name": "GptNeoxMLP", "post_attention_norm": True, "post_mlp_norm": True}, "no family"),
        ({"n_embd": "32"}, "n_embd"),
    ],
)
def test_configuration_that_is_not_understood_is_refused_by_name(change, named, tmp_path):
    make_lit_gpt(tmp_path / "lit", "llama", "litgpt-0.5", **change)
    with pytest.raises(ValueError, match=named):
        convert(tmp_path / "lit")
    assert not (tmp_path / "lit" / "lit_config.json").exists()


@pytest.mark.parametrize("text", ["{", "- 1", "a: !!python/object/apply:os.getcwd []"])
def test_broken_yaml(text, tmp_path):
    make_lit_gpt(tmp_path / "lit", "llama", "litgpt-0.5")
    (tmp_path / "lit" / "model_config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"model_config\.yaml"):
        convert(tmp_path / "lit")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("transformer.h.1.attn.proj.weight"), r"missing, among them transformer\.h\.1\.attn\.\w+\.weight"),
        (lambda t: t.update({"transformer.h.0.extra.weight": torch.ones(1)}), r"unexpected tensor transformer\.h\.0\.extra"),
        (lambda t: t.update({"transformer.h.0.attn.qkv.weight": torch.ones(9, 32)}), "has 9 rows, its config says 64"),
        (lambda t: t.update({"transformer.ln_f.weight": torch.ones(9)}), r"transformer\.ln_f\.weight has shape \[9\]"),
        (lambda t: t.update({"transformer.ln_f.weight": "text"}), "does not hold a dict of tensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, named, tmp_path):
    make_lit_gpt(tmp_path / "lit", "llama", "litgpt-0.5")
    path = tmp_path / "lit" / "lit_model.pth"
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)
    with pytest.raises(ValueError, match=named):
        convert(tmp_path / "lit")
    assert not (tmp_path / "lit" / "lit_config.json").exists()


class Bomb:
    """Pickled, it is a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_code_in_it_is_refused_and_not_executed(tmp_path):
    folder = tmp_path / "lit"
    make_lit_gpt(folder, "llama", "litgpt-0.5")
    (folder / "lit_model.pth").write_bytes(pickle.dumps({"lm_head.weight": Bomb(tmp_path / "executed")}))
    with pytest.raises(ValueError, match="it was not executed"):
        convert(folder)
    assert not (tmp_path / "executed").exists()


def test_export_names_follow_the_family_of_config_json(tmp_path):
    folder = tmp_path / "lit"
    make_lit_gpt(folder, "falcon-7b", "litgpt-0.5")
    convert(folder)
    shutil.copyfile(tmp_path / "hf" / "config.json", folder / "config.json")
    with pytest.raises(ValueError, match="model_type"):
        export_hf(folder, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convert(folder)
    export_hf(folder, tmp_path / "out")
