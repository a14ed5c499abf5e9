"""Damaged, incomplete and hostile checkpoint folders: refused with a message that names the cause, before harm is done."""

import json
import pickle
import re

import pytest
import torch
from families import BY_NAME, CASES, make_reference
from safetensors.torch import load_file, save_file

from lit_llm.checkpoint.convert import convert
from lit_llm.checkpoint.load_model import load_model
from lit_llm.model.config import Config

LLAMA = CASES[0]


@pytest.fixture
def folder(tmp_path):
    """A llama in three shards or more."""
    make_reference(LLAMA, tmp_path, max_shard_size="40KB")
    return tmp_path


@pytest.fixture
def index(folder):
    return folder / "model.safetensors.index.json"


def shard_of(index, tensor):
    return index.parent / json.loads(index.read_text())["weight_map"][tensor]


def remap(index, tensor, file):
    values = json.loads(index.read_text())
    values["weight_map"][tensor] = file
    index.write_text(json.dumps(values))


def edit(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def test_shards_load(folder):
    load_model(folder)


def test_missing_shard(folder, index):
    shard_of(index, "model.norm.weight").unlink()
    with pytest.raises(FileNotFoundError, match="lacks the shard 'model-0000"):
        load_model(folder)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "sub/model.safetensors"])
def test_index_that_leaves_the_folder(folder, index, name):
    remap(index, "model.norm.weight", name)
    with pytest.raises(ValueError, match="outside of the folder"):
        load_model(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_broken_index(folder, index, text):
    index.write_text(text)
    with pytest.raises(ValueError, match=r"index\.json"):
        load_model(folder)


def test_index_names_a_shard_that_lacks_the_tensor(folder, index):
    edit(shard_of(index, "model.norm.weight"), lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ValueError, match=r"1 tensors are missing, among them model\.norm\.weight"):
        load_model(folder)


def test_stale_copy_in_another_shard_is_not_read(folder, index):
    model, name = load_model(folder), "model.norm.weight"
    for file in folder.glob("*.safetensors"):
        if file != shard_of(index, name):
            edit(file, lambda tensors: tensors.update({name: torch.full((32,), 7.0)}))
    assert torch.equal(load_model(folder).norm.weight, model.norm.weight)


@pytest.mark.parametrize("size", [0, 7, 100, -100])
def test_truncated_safetensors(folder, index, size):
    path = shard_of(index, "model.norm.weight")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{path.name} is damaged or incomplete"):
        load_model(folder)


def test_unexpected_tensor(folder, index):
    edit(shard_of(index, "model.norm.weight"), lambda tensors: tensors.update({"model.layers.0.extra.weight": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"unexpected tensor model\.layers\.0\.extra\.weight"):
        load_model(folder)


def test_tensor_of_a_layer_that_config_does_not_have(folder, index):
    name = "model.layers.3.input_layernorm.weight"
    edit(shard_of(index, "model.norm.weight"), lambda tensors: tensors.update({name: torch.ones(32)}))
    with pytest.raises(ValueError, match=r"unexpected tensor model\.layers\.3\.input_layernorm\.weight"):
        load_model(folder)


def test_wrong_shape(folder, index):
    edit(shard_of(index, "model.norm.weight"), lambda tensors: tensors.update({"model.norm.weight": torch.ones(7)}))
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \[7\], its config says \[32\]"):
        load_model(folder)


def test_wrong_rows_of_a_fused_tensor(tmp_path):
    make_reference(BY_NAME["phi3"], tmp_path)
    name = "model.layers.1.self_attn.qkv_proj.weight"
    edit(tmp_path / "model.safetensors", lambda tensors: tensors.update({name: torch.ones(65, 32)}))
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.qkv_proj\.weight has 65 rows, its config says 64"):
        load_model(tmp_path)


def test_weights_that_are_not_numbers_with_a_point(folder, index):
    edit(shard_of(index, "model.norm.weight"), lambda tensors: tensors.update({"model.norm.weight": torch.ones(32).char()}))
    with pytest.raises(ValueError, match=r"norm\.weight has dtype torch\.int8"):
        load_model(folder)


@pytest.mark.parametrize("new_format", [True, False])
def test_legacy_pickle_of_tensors_is_read(folder, tmp_path_factory, new_format):
    model, old = load_model(folder), tmp_path_factory.mktemp("old")
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    torch.save(tensors, old / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
    (old / "config.json").write_text((folder / "config.json").read_text())
    assert load_model(old).fingerprint == model.fingerprint


class Bomb:
    """Pickled, it is a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["torch.save", "torch.save, old format", "pickle"])
def test_pickle_with_code_in_it_is_refused_and_not_executed(folder, tmp_path_factory, how):
    old = tmp_path_factory.mktemp("old")
    (old / "config.json").write_text((folder / "config.json").read_text())
    content = {"model.norm.weight": torch.ones(32), "x": Bomb(old / "executed")}
    if how == "pickle":
        (old / "pytorch_model.bin").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, old / "pytorch_model.bin", _use_new_zipfile_serialization=how == "torch.save")
    with pytest.raises(ValueError, match="it was not executed"):
        load_model(old)
    assert not (old / "executed").exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("model.layers.0.self_attn.q_proj.qweight", "quantization_config in config.json is missing"),  # GPTQ, AWQ
        ("model.layers.0.mlp.up_proj.weight_scale_inv", "quantization_config in config.json is missing"),  # DeepSeek's float8
        ("model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", "quantization_config in"),
        ("model.layers.0.self_attn.k_proj.k_scale", "8-bit key/value cache"),
        ("v_head.summary.weight", "value head of TRL"),
        ("model.layers.0.mlp.up_proj.lora_A.default.weight", "adapter of PEFT"),
        ("score.weight", "classifier"),
        ("model.layers.0.self_attn.q_proj.bias", "no such tensor"),
        ("norm.weight", "no such tensor"),  # our name, which is not upstream's
    ],
)
def test_tensor_without_a_place_is_named_and_explained(folder, index, name, why):
    edit(shard_of(index, "model.norm.weight"), lambda tensors: tensors.update({name: torch.ones(32)}))
    with pytest.raises(ValueError, match=f"unexpected tensor {re.escape(name)}: .*{why}"):
        load_model(folder)


@pytest.mark.parametrize(
    "name",
    ["rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "rotary_emb.original_inv_freq", "bias",
     "masked_bias", "causal_mask"],
)  # fmt: skip
def test_tensors_that_the_model_computes_are_ignored(folder, index, name):
    buffer = {f"model.layers.0.self_attn.{name}": torch.full((4,), torch.nan)}
    edit(shard_of(index, "model.norm.weight"), lambda tensors: tensors.update(buffer))
    load_model(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused_by_name(folder, index, value, dtype):
    weight = torch.full((32,), 60000.0, dtype=dtype)  # its sum is infinite in float16
    edit(shard_of(index, "model.norm.weight"), lambda tensors: tensors.update({"model.norm.weight": weight}))
    load_model(folder)
    weight[7] = value
    edit(shard_of(index, "model.norm.weight"), lambda tensors: tensors.update({"model.norm.weight": weight}))
    for read in (load_model, convert):
        with pytest.raises(ValueError, match=r"model\.norm\.weight has 1 of 32 values that are NaN or infinite"):
            read(folder)
    assert not (folder / "lit_config.json").exists()


def test_null_in_an_index_means_absent(folder, index):
    values = json.loads(index.read_text())
    values["weight_map"]["model.extra"] = values["metadata"] = None
    index.write_text(json.dumps(values))
    load_model(folder)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80", b"\x80\x04.", b"PK\x03\x04" + bytes(99)])
def test_an_empty_or_cut_pickle_is_refused(folder, tmp_path_factory, content):
    old = tmp_path_factory.mktemp("old")
    (old / "config.json").write_text((folder / "config.json").read_text())
    (old / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged, .*Use a checkpoint with safetensors"):
        load_model(old)


def test_config_and_weights_of_different_families(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "gpt_neox"}))
    with pytest.raises(ValueError, match="unexpected tensor"):
        load_model(folder)


_MINIMAL = {"model_type": "llama", "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": -4}, "num_attention_heads"),
        ({"num_attention_heads": "4"}, "num_attention_heads"),
        ({"vocab_size": True}, "vocab_size"),
        ({"hidden_size": 2**24, "vocab_size": 2**24}, "weights"),
        ({"intermediate_size": 2**31, "hidden_size": 2**20}, "weights"),
        ({"num_key_value_heads": 3}, "key/value heads"),
        ({"head_dim": 2**40}, "head_dim"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"hidden_act": "snake"}, "snake"),
        ({"model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 10**8}, "n_expert"),
        ({"model_type": "mixtral", "router_jitter_noise": 0.1}, "router_jitter_noise"),
        ({"model_type": "qwen2", "layer_types": ["linear_attention"] * 2}, "linear_attention"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "sliding_window"),
        ({"model_type": "gemma", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"model_type": "gpt2", "reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
        ({"model_type": "gpt_bigcode", "scale_attn_weights": False}, "scale_attn_weights"),
        ({"model_type": "phi3", "attention_bias": True}, "attention_bias"),
    ],
)
def test_absurd_or_unsupported_configs_are_refused_by_name(changes, named):
    with pytest.raises(ValueError, match=named):
        Config.from_hf({**_MINIMAL, **changes})


def test_unknown_keys_are_listed_in_a_warning():
    with pytest.warns(UserWarning, match="flux_capacitor, warp_factor"):
        Config.from_hf({**_MINIMAL, "warp_factor": 9, "flux_capacitor": True, "use_cache": True})


def test_configs_written_by_an_earlier_version_stay_valid():
    """lit_config.json holds all fields; a field that is new has a default, and what is unknown is refused."""
    config = Config.from_hf(_MINIMAL)
    values = config.to_dict()
    assert Config.from_dict(json.loads(json.dumps(values))) == config
    for name in ("qk_norm", "sliding_window", "n_expert", "rope_scaling"):
        del values[name]
    assert Config.from_dict(values) == config
    with pytest.raises(ValueError, match="warp_factor"):
        Config.from_dict({**values, "warp_factor": 9})


@pytest.mark.parametrize("name", ["norm", "qk_norm", "mlp", "activation"])
def test_parts_that_do_not_exist_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        Config.from_dict({**Config.from_hf(_MINIMAL).to_dict(), name: "other"})
