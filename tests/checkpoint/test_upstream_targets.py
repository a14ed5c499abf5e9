"""Targets with names of transformers."""

import pytest
import torch
from families import CASES, all_families
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from lit_llm.args.finetune import LoRAArgs
from lit_llm.args.measure import EstimateArgs
from lit_llm.checkpoint.read import empty_model
from lit_llm.checkpoint.upstream_linears import resolve_targets, upstream_linears
from lit_llm.errors import OptionError
from lit_llm.estimation.step_memory import estimate_run
from lit_llm.methods.inject import find_linears
from lit_llm.model.config import Config

TARGETS = {
    "llama": {"q_proj,v_proj": "q,v", "gate_proj,k": "gate,k", "lm_head": "head", "all-linear": "all-linear"},
    "phi3": {"qkv_proj": "q,k,v", "gate_up_proj,o_proj": "gate,up,o"},
    "gpt_neox": {"query_key_value": "q,k,v", "embed_out": "head", "dense,dense_4h_to_h": "o,down"},
    "gpt2": {"c_attn": "q,k,v", "c_proj": "o,down", "attn.c_proj": "o", "c_fc,lm_head": "up,head"},
    "deepseek_v2": {"q_a_proj,kv_b_proj": "q_down,kv_up", "kv_a_proj_with_mqa": "kv_down", "k,v": "k,v"},
    "mixtral": {"w1,w3": "gate,up", "model.layers.1.self_attn.q_proj": "h.1.attn.q"},
}


def both(case):
    sizes = {"vocab_size": case.vocab_size, "pad_token_id": 0, **case.sizes}
    config = AutoConfig.for_model(case.family, **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return Config.from_hf(config.to_dict()), model


@pytest.mark.parametrize("family", TARGETS)
def test_names_of_transformers_select_the_linears_that_they_hold(family):
    config, _ = both(next(case for case in CASES if case.family == family))
    model = empty_model(config)
    for theirs, ours in TARGETS[family].items():
        assert resolve_targets(model, theirs) == ours
        assert resolve_targets(model, theirs.split(",")) == ours.split(",")


def test_keys_and_values_of_latent_attention_are_one_linear():
    config, _ = both(next(case for case in CASES if case.name == "deepseek_v2"))
    for targets, ours in {"q": {"q_up"}, "k": {"kv_up"}, "q,v": {"q_up", "kv_up"}}.items():
        assert {name.rpartition(".")[2] for name in find_linears(empty_model(config), targets)} == ours


@pytest.mark.parametrize("case", all_families())
def test_all_linears_of_transformers_are_found_by_name(case):
    config, model = both(case)
    found = upstream_linears(empty_model(config))
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)}
    shapes = {name: (linear.in_features, sum(linear.out_features)) for name, linear in found.items()}
    linears = {name for name in linears if not name.endswith(("router", ".gate"))}
    assert linears <= set(found)
    for name in linears:
        rows, columns = model.get_submodule(name).weight.shape
        is_transposed = isinstance(model.get_submodule(name), Conv1D)
        assert shapes[name] == ((rows, columns) if is_transposed else (columns, rows))


def test_an_unknown_name_lists_all(checkpoint):
    config, _ = both(CASES[0])
    with pytest.raises(OptionError, match=r"'c_attn' matches no linear .* has q, k, .* head; in transformers q_proj, k_proj"):
        resolve_targets(empty_model(config), "q_proj,c_attn")
    counts = [
        estimate_run(EstimateArgs(checkpoint_dir=checkpoint, method="lora", lora=LoRAArgs(targets=t)))["trainable_params"]
        for t in ("q,up", "q_proj,up_proj")
    ]
    assert counts[0] == counts[1] > 0
