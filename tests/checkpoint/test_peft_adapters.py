"""Adapters of PEFT give the logits that PEFT computes with them, and come back as they were from an export."""

import json
import re
import shutil
import warnings

import peft
import pytest
import torch
from families import BY_NAME, all_families, make_reference, relative_difference
from safetensors.torch import load_file, save_file
from tiny import make_checkpoint
from transformers import AutoModelForCausalLM

from lit_llm.checkpoint.adapters import Adapter, attach_adapter, write_adapter
from lit_llm.checkpoint.export import export_hf, export_peft
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.merge import merge_adapters
from lit_llm.errors import CheckpointError
from lit_llm.methods.inject import find_linears
from lit_llm.methods.lora import LoRA


def make_peft(base, folder, seed=0, suffix=".safetensors", **options):
    """Save an adapter with random factors. Returns the model of PEFT."""
    options = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "lora_dropout": 0.1, **options}
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(task_type="CAUSAL_LM", **options)
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, 1.0 if "norm" in name or "magnitude" in name else 0.0, 0.15)
        model.save_pretrained(folder, safe_serialization=suffix == ".safetensors")
    return model


@torch.no_grad()
def logits(model, vocab_size):
    ids = torch.randint(1, vocab_size, (2, 20), generator=torch.Generator().manual_seed(3))
    found = model.eval()(ids)
    return getattr(found, "logits", found)


def attached(base, adapter, **options):
    model = load_model(base, **options)
    attach_adapter(model, adapter)
    return model


def make_base(name, folder):
    if name == "tiny":
        return make_checkpoint(folder)
    make_reference(BY_NAME[name], folder)
    return folder


@pytest.mark.parametrize("case", all_families())
def test_adapter_of_peft_gives_its_logits(case, tmp_path):
    make_reference(case, tmp_path / "base")
    has_experts = load_model(tmp_path / "base").config.n_expert > 0  # PEFT does not adapt these as linears
    targets = r".*self_attn\.\w+_proj(_with_mqa)?" if has_experts else "all-linear"
    theirs = make_peft(tmp_path / "base", tmp_path / "adapter", target_modules=targets)
    ours = attached(tmp_path / "base", tmp_path / "adapter")
    assert relative_difference(logits(ours, case.vocab_size), logits(theirs, case.vocab_size)) < 1e-5
    assert relative_difference(logits(load_model(tmp_path / "base"), 99), logits(theirs, 99)) > 1e-3


Q, KV, MLP = "self_attn.q_proj", "self_attn.(k|v)_proj", ["gate_proj", "up_proj", "down_proj"]
OPTIONS = {
    "ranks": ("llama", {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}, "alpha_pattern": {"^model.layers.0.*": 3}}),
    "regex": ("llama", {"target_modules": r".*layers\.[12]\.(self_attn\.[qv]_proj|mlp\.up_proj)"}),
    "full names": ("llama", {"target_modules": ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"]}),
    "latent": ("minicpm3", {"target_modules": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]}),
    "layers": ("llama", {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"}),
    "one layer": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "layers_to_transform": 1}),
    "excluded": ("llama", {"target_modules": ["q_proj", "v_proj", *MLP], "exclude_modules": ["model.layers.1.mlp.up_proj"]}),
    "head": ("gpt_neox", {"target_modules": ["query_key_value", "embed_out", "lm_head"]}),
    "rslora": ("phi3", {"use_rslora": True, "rank_pattern": {"qkv_proj": 9}}),
    "dora": ("llama", {"use_dora": True, "target_modules": ["q_proj", "k_proj", "down_proj"]}),
    "dora fused": ("phi3", {"use_dora": True, "target_modules": ["qkv_proj", "gate_up_proj"]}),
    "dora grouped": ("falcon-7b", {"use_dora": True, "target_modules": ["query_key_value", "dense"]}),
    "dora of Conv1D": ("gpt2", {"use_dora": True, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "head in full": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "embedding in full": ("llama", {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "head in full of gpt_neox": ("gpt_neox", {"modules_to_save": ["embed_in", "lm_head"]}),
    "mlp in full": ("phi3", {"target_modules": ["qkv_proj"], "modules_to_save": ["mlp"]}),
    "mlp of Conv1D in full": ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["mlp", "wpe"]}),
    "tied embedding in full": ("llama-mqa-bias-tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "tied head in full": ("llama-mqa-bias-tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "gaussian": ("qwen2", {"init_lora_weights": "gaussian", "target_modules": ["k_proj"]}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_peft_give_its_logits(name, tmp_path):
    """The adapter, the merged model and the adapter exported again."""
    family, options = OPTIONS[name]
    base, adapter = make_base(family, tmp_path / "base"), tmp_path / "adapter"
    theirs = logits(make_peft(base, adapter, **options), 99)
    assert relative_difference(logits(attached(base, adapter), 99), theirs) < 1e-5
    merge_adapters(base, [adapter], [1.0], tmp_path / "merged")
    assert relative_difference(logits(load_model(tmp_path / "merged"), 99), theirs) < 1e-5
    export_hf(tmp_path / "merged", tmp_path / "hf")
    assert relative_difference(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), 99), theirs) < 1e-5
    export_peft(base, adapter, tmp_path / "again")
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "again")
    assert relative_difference(logits(again, 99), theirs) < 1e-5


def train_nothing(base, folder, start=None, **arguments):
    """Write an adapter of ours with random factors, or one that starts from another. Returns its folder."""
    model = load_model(base)
    torch.manual_seed(0)
    method = LoRA(**arguments) if start is None else Adapter(start, model.config).method
    method.attach(model)
    if start is None:
        for name, parameter in model.named_parameters():
            if ".lora.B" in name or ".magnitude" in name:
                torch.nn.init.normal_(parameter, 0.1)
    else:
        from lit_llm.checkpoint.adapters import fill

        fill(model, Adapter(start, model.config).tensors())
    folder.mkdir()
    write_adapter(folder, model, method, base, "vicuna")
    return folder


ROUND_TRIPS = {
    "llama": {"targets": "q,v,down", "r": 3},
    "gpt_neox": {"targets": "q,v", "r": 4, "dropout": 0.2},
    "phi3": {"targets": "all-linear,head", "r": 4},
    "gpt2": {"targets": "k,o,up", "r": 2, "use_rslora": True},
    "falcon-7b": {"targets": ["q", "h.1.attn.v"], "r": 8},
    "starcoder2": {"targets": "q,up", "r": 4, "use_dora": True},
    "minicpm3": {"targets": "q,v,kv_down", "r": 4, "use_dora": True},
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_export_and_import_are_bit_exact(name, tmp_path):
    base = make_base(name, tmp_path / "base")
    ours = train_nothing(base, tmp_path / "ours", **ROUND_TRIPS[name])
    export_peft(base, ours, tmp_path / "peft")
    again = train_nothing(base, tmp_path / "again", start=tmp_path / "peft")
    before, after = (load_file(folder / "adapter.safetensors") for folder in (ours, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(attached(base, ours), 99), logits(attached(base, again), 99))
    was, now = (json.loads((folder / "adapter.json").read_text()) for folder in (ours, again))
    if isinstance(was["arguments"]["targets"], str):
        model, kept = load_model(base), ("r", "alpha", "dropout", "use_rslora", "use_dora")
        assert {n: was["arguments"][n] for n in kept} == pytest.approx({n: now["arguments"][n] for n in kept})
        targets = [find_linears(model, about["arguments"]["targets"]).keys() for about in (was, now)]
        assert targets[0] == targets[1]
    assert Adapter(tmp_path / "peft", load_model(base).config).about["prompt_style"] == "vicuna"


def test_updates_of_experts_give_the_logits_of_peft(tmp_path):
    """An adapter as PEFT wrote it while transformers held each expert as linears."""
    base, adapter = make_base("mixtral", tmp_path / "base"), tmp_path / "adapter"
    make_peft(base, adapter, target_modules=r".*self_attn\.[qv]_proj")
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    sizes = {"w1": (32, 48), "w2": (48, 32), "w3": (32, 48)}
    for i, name in ((i, name) for i in range(3) for name in sizes):
        for expert in range(4):
            prefix = f"base_model.model.model.layers.{i}.block_sparse_moe.experts.{expert}.{name}.lora_"
            tensors[f"{prefix}A.weight"] = torch.randn(4, sizes[name][0]) * 0.2
            tensors[f"{prefix}B.weight"] = torch.randn(sizes[name][1], 4) * 0.2
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})
    config |= {"target_modules": ["q_proj", "v_proj", *sizes], "lora_dropout": 0.0}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    assert relative_difference(logits(attached(base, adapter), 99), logits(theirs, 99)) < 1e-5


def test_pickles_half_precision_and_prefixes_of_other_classes_are_read(tmp_path):
    base, adapter = make_base("llama", tmp_path / "base"), tmp_path / "adapter"
    expected = logits(make_peft(base, adapter), 99)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    path.unlink()
    renamed = {name.replace(".model.layers", ".language_model.model.layers"): tensor for name, tensor in tensors.items()}
    torch.save(renamed, path.with_suffix(".bin"))
    assert relative_difference(logits(attached(base, adapter), 99), expected) < 1e-5
    halves = {name.replace(".weight", ".default.weight"): tensor.bfloat16() for name, tensor in tensors.items()}
    torch.save(halves, path.with_suffix(".bin"))
    found = attached(base, adapter, dtype=torch.bfloat16)
    assert {p.dtype for name, p in found.named_parameters() if ".lora." in name} == {torch.float32}
    assert relative_difference(logits(found, 99).float(), expected) < 0.1  # of bfloat16


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Return a function that writes an adapter with changes to its config and tensors, and the base."""
    folder = tmp_path_factory.mktemp("broken")
    base = make_base("llama", folder / "base")
    make_peft(base, folder / "good", target_modules=["q_proj", "v_proj"], modules_to_save=["norm"])

    def write(config=None, tensors=lambda tensors: tensors):
        shutil.rmtree(folder / "bad", ignore_errors=True)
        shutil.copytree(folder / "good", folder / "bad")
        path = folder / "bad" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **(config or {})}))
        path = folder / "bad" / "adapter_model.safetensors"
        save_file(tensors(load_file(path)), path, {"format": "pt"})
        return base, folder / "bad"

    return write


L0, HEAD, NORM = "base_model.model.model.layers.0", "base_model.model.lm_head.weight", "base_model.model.model.norm.weight"
Q0 = f"{L0}.self_attn.q_proj.lora_"


def replaced(name, tensor):
    return lambda tensors: {**tensors, name: tensor}


def without(name):
    return lambda tensors: {other: tensor for other, tensor in tensors.items() if other != name}


BROKEN = {
    "other kind": ({"peft_type": "LOHA"}, None, "peft_type is 'LOHA'. Only LORA can be used. Merge it with PEFT"),
    "no kind": ({"peft_type": None}, None, "peft_type is null"),
    "biases": ({"bias": "all"}, None, "bias is 'all': trained biases of linears are not supported"),
    "bias of B": ({"lora_bias": True}, None, "lora_bias is true: a bias of B"),
    "parameters": ({"target_parameters": ["gate_up_proj"]}, None, "target_parameters is ['gate_up_proj']"),
    "tokens": ({"trainable_token_indices": [3]}, None, "trainable_token_indices is [3]: updates of single rows"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, None, "'pissa_niter_4', which changed the weights of the base"),
    "loftq": ({"init_lora_weights": "loftq"}, None, "'loftq', which changed the weights of the base"),
    "no targets": ({"target_modules": None}, None, "target_modules is missing"),
    "rank of a string": ({"r": "4"}, None, "adapter_config.json: r must be an integer, found '4'"),
    "no rank": ({"r": 0}, None, "the rank of model.layers.0.self_attn.q_proj is 0, expected above 0"),
    "other rank": ({"r": 8}, None, f"tensor {Q0}A has rank 4, adapter_config.json says 8. Download or export"),
    "bad regex": ({"target_modules": "("}, None, "'(' is not a regular expression"),
    "more targets": ({"target_modules": ["q_proj", "k_proj", "v_proj"]}, None, "self_attn.k_proj.lora_A is missing"),
    "fewer targets": ({"target_modules": ["v_proj"]}, None, "has an update of model.layers.0.self_attn.q_proj"),
    "no B": (None, without(f"{Q0}B.weight"), f"tensor {Q0}B is missing. Download or export the adapter again"),
    "unknown tensor": (None, replaced(f"{L0}.foo.weight", torch.ones(2)), "unexpected tensor 'base_model.model"),
    "unknown linear": (None, replaced(f"{L0}.qq.lora_A.weight", torch.ones(4, 32)), "the base has no linear 'model.layers.0"),
    "another layer": (None, replaced(f"{L0}9.mlp.lora_A.weight", torch.ones(4, 32)), "The adapter was trained on another base"),
    "another base": (None, replaced(f"{Q0}A.weight", torch.ones(4, 64)), "_A has shape [4, 64], the base needs [4, 32]"),
    "larger norm": (None, replaced(NORM, torch.ones(64)), "norm.weight has shape [64], the base has [32]"),
    "another head": (None, replaced(HEAD, torch.ones(99, 32)), "lm_head.weight differs from that of the base"),
    "NaN": (None, replaced(f"{Q0}B.weight", torch.full((32, 4), torch.nan)), "has 128 of 128 values that are NaN or infinite"),
    "integers": (None, replaced(f"{Q0}B.weight", torch.ones(32, 4, dtype=torch.int8)), "has dtype torch.int8"),
    "magnitude": (None, replaced(f"{Q0}magnitude_vector", torch.ones(32)), "is of DoRA, but"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_adapters_are_refused_with_file_and_remedy(name, broken):
    config, tensors, message = BROKEN[name]
    base, adapter = broken(config, tensors or (lambda tensors: tensors))
    with pytest.raises(CheckpointError, match=re.escape(message)) as found:
        attached(base, adapter)
    assert str(adapter) in str(found.value)


def test_scripts_take_adapters_of_peft_and_refuse_truncated_ones(checkpoint, tmp_path, script):
    make_peft(checkpoint, tmp_path / "adapter", target_modules=["q_proj", "up_proj"])
    ask = ("--prompt=the red cat", "--temperature=0", "--max_new_tokens=8")
    answer = script("generate/lora.py", "--adapter_dir", tmp_path / "adapter", *ask)  # the base is where PEFT says
    assert "prompt style alpaca" in answer.stderr
    folders = ("--checkpoint_dir", checkpoint, "--adapter_dir", tmp_path / "adapter")
    script("scripts/merge_lora.py", *folders, "--output_dir", tmp_path / "merged")
    assert script("generate/full.py", "--checkpoint_dir", tmp_path / "merged", *ask).stdout == answer.stdout
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused = script("scripts/merge_lora.py", *folders, "--output_dir", tmp_path / "new", check=False)
    assert refused.returncode == 2
    assert f"error: {path} is damaged or incomplete" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "new").exists()
