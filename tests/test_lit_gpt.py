"""Checkpoints of Lit-GPT (2023) and litgpt are read with the logits that the same weights have in transformers."""

import json
import pickle
import shutil
import warnings

import pytest
import torch
import yaml
from families import CASES, make_reference, random_ids, relative_difference
from tiny import make_tokenizer
from transformers import AutoModelForCausalLM

from lit_llm.checkpoint.convert import convert
from lit_llm.checkpoint.export import export_hf
from lit_llm.checkpoint.load_model import load_model

# Their configuration of each tiny model, and their name for each of its modules.
_SIZES = {"block_size": 64, "vocab_size": 99, "padded_vocab_size": 99, "n_layer": 3, "n_head": 4, "n_embd": 32}
_LLAMA = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "parallel_residual": False, "bias": False}
_LLAMA |= {"rotary_percentage": 1.0, "intermediate_size": 48, "n_query_groups": 2, "norm_eps": 1e-6}
_MIXTRAL = {
    **_LLAMA,
    "mlp_class_name": "LLaMAMoE",
    "norm_eps": 1e-5,
    "rope_base": 1000000,
    "n_expert": 4,
    "n_expert_per_token": 2,
}
_FALCON = {"rotary_percentage": 1.0, "parallel_residual": True, "bias": False, "n_query_groups": 1}
CONFIGS = {
    "gpt_neox": {"rotary_percentage": 0.25, "intermediate_size": 48},
    "llama": _LLAMA,
    "llama-linear": {**_LLAMA, "rope_condense_ratio": 4},
    "llama3.1": {
        **_LLAMA,
        "rope_base": 500000,
        "rope_adjustments": {
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_seq_len": 16,
        },
    },
    "qwen2": {**_LLAMA, "attn_bias": True},
    "mixtral": _MIXTRAL,
    "falcon-7b": {**_FALCON, "shared_attention_norm": True},
    "falcon-40b": {**_FALCON, "n_query_groups": 2},
}
ONLY_LITGPT = ("llama3.1", "qwen2")  # Lit-GPT had no such models
_LAYER = "transformer.h.{}."
NAMES = {
    "gpt_neox": {
        "gpt_neox.embed_in": "transformer.wte",
        "gpt_neox.layers.{}.input_layernorm": _LAYER + "norm_1",
        "gpt_neox.layers.{}.attention.dense": _LAYER + "attn.proj",
        "gpt_neox.layers.{}.post_attention_layernorm": _LAYER + "norm_2",
        "gpt_neox.layers.{}.mlp.dense_h_to_4h": _LAYER + "mlp.fc",
        "gpt_neox.layers.{}.mlp.dense_4h_to_h": _LAYER + "mlp.proj",
        "gpt_neox.final_layer_norm": "transformer.ln_f",
        "embed_out": "lm_head",
    },
    "llama": {
        "model.embed_tokens": "transformer.wte",
        "model.layers.{}.input_layernorm": _LAYER + "norm_1",
        "model.layers.{}.self_attn.o_proj": _LAYER + "attn.proj",
        "model.layers.{}.post_attention_layernorm": _LAYER + "norm_2",
        "model.layers.{}.mlp.gate_proj": _LAYER + "mlp.fc_1",
        "model.layers.{}.mlp.up_proj": _LAYER + "mlp.fc_2",
        "model.layers.{}.mlp.down_proj": _LAYER + "mlp.proj",
        "model.layers.{}.block_sparse_moe.gate": _LAYER + "mlp.gate",
        "model.norm": "transformer.ln_f",
        "lm_head": "lm_head",
        **{
            f"model.layers.{{}}.block_sparse_moe.experts.{e}.{theirs}": f"{_LAYER}mlp.experts.{e}.{ours}"
            for e in range(4)
            for theirs, ours in (("w1", "fc_1"), ("w3", "fc_2"), ("w2", "proj"))
        },
    },
    "falcon": {
        "transformer.word_embeddings": "transformer.wte",
        "transformer.h.{}.input_layernorm": _LAYER + "norm_1",
        "transformer.h.{}.ln_attn": _LAYER + "norm_1",
        "transformer.h.{}.ln_mlp": _LAYER + "norm_2",
        "transformer.h.{}.self_attention.dense": _LAYER + "attn.proj",
        "transformer.h.{}.mlp.dense_h_to_4h": _LAYER + "mlp.fc",
        "transformer.h.{}.mlp.dense_4h_to_h": _LAYER + "mlp.proj",
        "transformer.ln_f": "transformer.ln_f",
        "lm_head": "lm_head",
    },
}
NAMES |= {"mixtral": NAMES["llama"], "qwen2": NAMES["llama"]}
GENERATIONS = ("lit-gpt", "litgpt-0.4", "litgpt-0.5")


def make_lit_gpt(folder, name, generation, **changes):
    """The tiny model of that case in transformers, and a folder that holds its weights as this generation did."""
    from safetensors.torch import load_file

    case = next(case for case in CASES if case.name == name)
    reference = make_reference(case, folder.parent / "hf")
    hf = load_file(folder.parent / "hf" / "model.safetensors")
    hf.setdefault("lm_head.weight", hf.get("transformer.word_embeddings.weight"))
    config = {**_SIZES, **CONFIGS[name], **changes}
    modules = {k.format(i): v.format(i) for k, v in NAMES[case.family].items() for i in range(config["n_layer"])}
    tensors = {
        f"{modules[module]}.{kind}": hf[f"{module}.{kind}"]
        for module in modules
        for kind in ("weight", "bias")
        if hf.get(f"{module}.{kind}") is not None
    }
    for i in range(config["n_layer"]):
        for kind in ("weight", "bias"):
            if parts := qkv(hf, i, kind, config):
                qkv_name = "attn.qkv" if generation == "litgpt-0.5" else "attn.attn"
                fuse = torch.cat if generation == "litgpt-0.5" else by_groups
                tensors[f"transformer.h.{i}.{qkv_name}.{kind}"] = fuse(parts)
    folder.mkdir()
    torch.save(tensors, folder / "lit_model.pth")
    if generation == "lit-gpt":
        for part in ("norm", "mlp"):
            if f"{part}_class_name" in config:
                config[f"_{part}_class"] = config.pop(f"{part}_class_name")
        (folder / "lit_config.json").write_text(json.dumps({"org": "o", "name": "m", **config}))
    else:
        (folder / "model_config.yaml").write_text(yaml.dump({"name": "m", "hf_config": {"org": "o", "name": "m"}, **config}))
    make_tokenizer(folder, 99)
    return case, reference


def qkv(hf, i, kind, config):
    """q, k and v as lists of heads' rows: (n_head, n_query_groups, n_query_groups)."""
    llama = [hf.get(f"model.layers.{i}.self_attn.{part}_proj.{kind}") for part in "qkv"]
    if llama[0] is not None:
        return llama
    fused = hf.get(f"gpt_neox.layers.{i}.attention.query_key_value.{kind}")
    if fused is None:
        fused = hf.get(f"transformer.h.{i}.self_attention.query_key_value.{kind}")
    if fused is None:
        return None
    # In both of these families the queries of a group, its key and its value follow one another.
    n_groups = config.get("n_query_groups", config["n_head"])
    groups = [group.split(8) for group in fused.chunk(n_groups)]
    return [
        torch.cat([head for group in groups for head in group[span]]) for span in (slice(-2), slice(-2, -1), slice(-1, None))
    ]


def by_groups(parts):
    """Rows as Lit-GPT and litgpt up to 0.4 fuse them: for each key/value head its queries, the key, the value."""
    q, k, v = (part.split(8) for part in parts)
    per_group = len(q) // len(k)
    rows = []
    for g in range(len(k)):
        rows += [*q[g * per_group : (g + 1) * per_group], k[g], v[g]]
    return torch.cat(rows)


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
        (lambda t: t.pop("transformer.h.1.attn.proj.weight"), r"1 tensors are missing, among them h\.1\.attn\.o\.weight"),
        (lambda t: t.update({"transformer.h.0.extra.weight": torch.ones(1)}), r"unexpected tensor transformer\.h\.0\.extra"),
        (lambda t: t.update({"transformer.h.0.attn.qkv.weight": torch.ones(9, 32)}), "has 9 rows, its config says 64"),
        (lambda t: t.update({"transformer.ln_f.weight": torch.ones(9)}), r"norm\.weight has shape \[9\]"),
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


def test_the_family_that_config_json_names_decides_the_names_on_export(tmp_path):
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
