"""Greedy generation token for token against `transformers.generate`, for every family, beyond windows and scaled contexts."""

import dataclasses

import pytest
import torch
from conftest import needs_compiler
from families import BY_NAME, CASES, make_reference, random_ids
from greedy import LENGTHS, N_NEW, NoText, continued
from torch._dynamo.utils import counters

from lit_llm.checkpoint.load_model import load_model
from lit_llm.generation.generate import generate
from lit_llm.model.quantized_linear import QuantizedLinear


def theirs(reference, prompts):
    """New tokens of transformers for prompts of different lengths, padded on the left and masked."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    reference.generation_config.eos_token_id = None
    found = reference.generate(ids, attention_mask=mask, max_new_tokens=N_NEW, do_sample=False, pad_token_id=0)
    return found[:, longest:].tolist()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_greedy_generation_equals_transformers(case, tmp_path):
    reference = make_reference(case, tmp_path)
    model = load_model(tmp_path)
    prompts = [row[:n].tolist() for row, n in zip(random_ids(case, 8, 20), LENGTHS, strict=True)]
    alone = generate(model, NoText(), prompts[:1], max_new_tokens=N_NEW, temperature=0)
    assert [c.ids for c in alone] == theirs(reference, prompts[:1])
    batch = [c.ids for c in generate(model, NoText(), prompts, max_new_tokens=N_NEW, temperature=0)]
    # phi3 switches the tables of LongRoPE by the length of the padded batch, and so for short rows too. In
    # llama4 queries grow by positions that count padding. In lfm2 padding is zero before a projection that adds a bias to it.
    if case.family in ("phi3", "llama4_text") or case.sizes.get("conv_bias"):
        assert batch == [theirs(reference, [prompt])[0] for prompt in prompts]
    else:
        assert batch == theirs(reference, prompts)


@needs_compiler
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "mistral-window"])
def test_a_compiled_model_compiles_once_and_equals_transformers(name, tmp_path):
    case = BY_NAME[name]
    case = dataclasses.replace(case, sizes={**case.sizes, "num_hidden_layers": 1})
    reference = make_reference(case, tmp_path)
    prompts = [row[:n].tolist() for row, n in zip(random_ids(case, 8, 20), LENGTHS, strict=True)]
    torch._dynamo.reset()
    counters.clear()
    assert continued(load_model(tmp_path), prompts, compile=True) == theirs(reference, prompts)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_mixture_of_experts_is_not_compiled(tmp_path):
    make_reference(BY_NAME["mixtral"], tmp_path)
    with pytest.raises(ValueError, match="`compile` does not support a mixture of experts"):
        continued(load_model(tmp_path), [[1, 2]], compile=True)


@torch.no_grad()
def test_a_quantized_model_equals_transformers_on_those_weights(tmp_path):
    case = BY_NAME["llama"]
    reference = make_reference(case, tmp_path)
    prompts = [row[:n].tolist() for row, n in zip(random_ids(case, 8, 20), LENGTHS, strict=True)]
    plain = theirs(reference, prompts)
    model = load_model(tmp_path, dtype=torch.float32, quantize="bnb.nf4")
    layers = {f"{part}_proj": part for part in ("q", "k", "v", "o", "gate", "up", "down")}
    n_replaced = 0
    for name, linear in reference.named_modules():
        if (last := name.rpartition(".")[2]) in layers:
            ours = getattr(model.h[int(name.split(".")[2])], "attn" if last[0] in "qkvo" else "mlp").get_submodule(layers[last])
            assert isinstance(ours, QuantizedLinear)
            linear.weight.copy_(ours.dequantize())
            n_replaced += 1
    assert n_replaced == 3 * 7
    found = continued(model, prompts)
    assert found == theirs(reference, prompts)
    assert found != plain
