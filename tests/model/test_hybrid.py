"""Models in which some layers have no attention, but keep a state of fixed size."""

import re
from dataclasses import replace

import pytest
import torch
from conftest import needs_compiler
from families import BY_NAME, Case, make_reference, random_ids, relative_difference
from greedy import NoText

from lit_llm.checkpoint.load_model import load_model
from lit_llm.data.batches import collate
from lit_llm.data.examples import Example
from lit_llm.devices.tensor_parallel import why_not_split
from lit_llm.errors import OptionError
from lit_llm.estimation.step_memory import estimate
from lit_llm.evaluation.score import Span, score
from lit_llm.generation.decode import decode_step, make_cache, prefill
from lit_llm.generation.speculative import check_draft
from lit_llm.methods.adapter import Adapter
from lit_llm.methods.full import Full
from lit_llm.methods.inject import find_linears, freeze
from lit_llm.methods.loss import next_token_loss
from lit_llm.model.compiled_blocks import compile_blocks
from lit_llm.model.config import Config
from lit_llm.model.gpt import GPT
from lit_llm.model.kv_cache import KVCache
from lit_llm.training.summary import summary

HYBRID = [
    replace(case, sizes={**case.sizes, "max_position_embeddings": 512})
    for case in (BY_NAME["lfm2"], BY_NAME["qwen3_next"], BY_NAME["qwen3_5_text-tied"])
]


@pytest.fixture(params=HYBRID, ids=str)
def case(request) -> Case:
    return request.param


@pytest.fixture
def reference(case, tmp_path):
    return make_reference(case, tmp_path)


@pytest.fixture
def model(reference, tmp_path):
    return load_model(tmp_path)


def test_a_document_is_independent_of_those_before_it(case, model):
    """Not to 1e-5, but bit by bit, and without a gradient; a token of its own changes it."""
    lengths, ids = [70, 1, 2, 61, 9], random_ids(case, 1, 143)
    x = model.wte(ids).detach().requires_grad_()
    model.embed = lambda ids, positions: x + model.wte(ids) - model.wte(ids).detach()
    hidden = model.hidden(ids, lengths)
    for start, length in ((70, 1), (71, 2), (73, 61), (134, 9)):
        (grad,) = torch.autograd.grad(hidden[:, start : start + length].square().sum(), x, retain_graph=True)
        assert grad[:, start : start + length].abs().amax(-1).all()
        assert not grad[:, :start].any()
        assert not grad[:, start + length :].any()


@torch.inference_mode()
def test_a_state_that_decays_at_once_stays_finite(case, model):
    """Documents in one chunk, over which the logarithms of the decays add up to thousands."""
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter.fill_(5.0)
    lengths, ids = [30, 20, 40, 70], random_ids(case, 1, 160)
    for document, hidden in zip(ids.split(lengths, 1), model.hidden(ids, lengths).split(lengths, 1), strict=True):
        assert relative_difference(hidden, model.hidden(document)) < 1e-5


@torch.inference_mode()
def test_tokens_in_parts_of_any_size_equal_transformers(case, reference, model):
    """The cache carries the state from part to part, within and beyond the chunks of a recurrent layer."""
    ids = random_ids(case, 2, 150)
    expected = reference(ids).logits
    cache = KVCache(model.config, 3, 160, "cpu", torch.float32)
    hidden, start = [model.hidden(ids[:, :70], cache=cache)], 70
    for n in (1, 2, 1, 66, 10):
        cache.length, cache.level = start + n, n == 1
        positions = torch.arange(start, start + n).expand(2, -1)
        hidden.append(model.hidden(ids[:, start : start + n], cache=cache, positions=positions))
        start += n
    assert relative_difference(model.head(torch.cat(hidden, dim=1)), expected) < 1e-5


@torch.inference_mode()
def test_a_prompt_and_its_padding_leave_the_state_of_the_prompt(case, model):
    """Whatever the rows held before."""
    ids, prompts = random_ids(case, 3, 90), ((0, 90), (1, 3), (2, 65))
    cache = make_cache(model, 3, 100)
    for tensors in cache.states:
        for tensor in tensors:
            tensor.fill_(7.0)
    prefill(model, cache, [ids[i, :n].tolist() for i, n in prompts])
    for i, n in prompts:
        alone = make_cache(model, 1, 100)
        prefill(model, alone, [ids[i, :n].tolist()])
        for found, expected in zip(cache.states, alone.states, strict=True):
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a[i], b[0], rtol=1e-5, atol=1e-5)
    assert sum(tensor.abs().sum() for tensors in cache.states for tensor in tensors) > 0


@torch.inference_mode()
def test_a_row_with_nan_is_cleared(case, model):
    cache = make_cache(model, 2, 20)
    prefill(model, cache, [[1, 2, 3], [4, 5]])
    for tensors in cache.states:
        for tensor in tensors:
            tensor[1] = torch.nan
    cache.clear(1)
    assert decode_step(model, cache, [3, 4], [3, 2]).isfinite().all()


def test_texts_with_a_common_beginning_are_scored_as_transformers_does(case, reference, model):
    """The state at the end of the beginning is computed once, and each text continues it."""
    start = random_ids(case, 1, 300)[0].tolist()
    spans = [Span(start + random_ids(case, 5, n)[i].tolist(), min(n, 3)) for i, n in enumerate((5, 9, 1, 30, 12))]
    for span, found in zip(spans, score(model, spans, 2), strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([span.ids[:-1]])).logits[0, -span.n_scored :]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(span.ids[-span.n_scored :])[:, None])[:, 0]
        assert found.log_probs == pytest.approx(expected.tolist(), abs=1e-5)


def loss_and_gradients(model, case, lengths):
    ids = random_ids(case, 1, sum(lengths))[0].int().split(list(lengths))
    model.zero_grad()
    batch = collate([Example(document, torch.ones(len(document), dtype=torch.bool)) for document in ids])
    loss = next_token_loss(model, batch)[0] / batch.n_targets
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_recomputed_blocks_have_the_same_gradients(case, model):
    freeze(model, Full())
    expected = loss_and_gradients(model, case, (5, 80, 3))
    model.activation_checkpointing = True
    found = loss_and_gradients(model, case, (5, 80, 3))
    assert found[0] == expected[0]
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("case", [case for case in HYBRID if "num_experts" not in case.sizes], ids=str, indirect=True)
def test_compiled_blocks_do_not_compile_again_for_other_lengths(case, model):
    """Once they have seen one chunk of a delta net and several, whose results have other strides."""
    freeze(model, Full())
    batches = [(5, 20, 33), (60, 12, 90, 44, 3), (7,), (20, 233)]
    expected = [loss_and_gradients(model, case, lengths) for lengths in batches]
    torch._dynamo.reset()
    compile_blocks(model)
    torch._dynamo.utils.counters.clear()
    n_graphs = []
    for lengths, (loss, gradients) in zip(batches, expected, strict=True):
        found_loss, found = loss_and_gradients(model, case, lengths)
        n_graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        assert found_loss == pytest.approx(loss, rel=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)
    assert n_graphs[1:] == [n_graphs[1]] * 3 and n_graphs[0] > 0


def test_what_needs_to_take_tokens_back_or_to_split_heads_is_refused(case, model):
    with pytest.raises(OptionError, match=f"not for {case.family}: its layers without attention keep a state"):
        check_draft(model, NoText(), model, NoText())
    assert why_not_split(model.config, 2, None, False) == "the model has layers without attention"


def test_adapters_are_for_the_layers_with_attention(case, model):
    method = Adapter(prompt_length=3, start_layer=0)
    method.attach(model)
    attends = {i for i in range(model.config.n_layer) if model.config.mixer(i) == "attn"}
    assert {int(name.split(".")[1]) for name, _ in model.named_parameters() if method.trainable(name)} == attends
    with pytest.raises(OptionError, match="leaves no layer with attention"):
        Adapter(start_layer=max(attends) + 1).attach(model)


def test_the_group_attn_is_all_linears_next_to_the_mlp(model):
    others = {name for name, _ in model.h.named_modules(prefix="h") if hasattr(_, "in_features") and ".mlp." not in name}
    assert find_linears(model, "attn").keys() == others


def test_a_cache_counts_a_state_that_does_not_grow(model):
    config = model.config
    small, large = (KVCache(config, 1, n, "meta", torch.float32).n_bytes() for n in (32, 64))
    n_attention = sum(config.mixer(i) == "attn" for i in range(config.n_layer))
    assert large - small == 32 * n_attention * 2 * config.n_query_groups * config.head_size * 4
    keys, values = config.delta_key_heads * config.delta_key_size, config.delta_heads * config.delta_value_size
    matrices = config.delta_heads * config.delta_key_size * config.delta_value_size
    states = {
        "conv": 4 * (config.conv_size - 1) * config.n_embd,
        "delta": 4 * ((config.conv_size - 1) * (2 * keys + values) + matrices),
    }
    assert 2 * small - large == sum(states.get(config.mixer(i), 0) for i in range(config.n_layer))
    if config.model_type == "lfm2":  # estimates of larger models take seconds
        found = estimate(config, Full(), 1, 32, False, False, "32-true", None)
        assert found["kv_cache_bytes_per_sequence"] == small


def test_the_summary_has_a_row_for_each_kind_of_layer(model):
    lines = [(line[:18].strip(), *line[18:].replace(",", "").split()) for line in summary(model).splitlines()[2:]]
    counts = {kind: int(trained) + int(frozen) for kind, trained, frozen, *_ in lines}
    rows = {"attention": ".attn.", "convolutions": r"\d.conv.", "delta nets": ".delta."}
    for kind, part in rows.items():
        found = [p.numel() for name, p in model.named_parameters() if re.search(part, name) and "norm." not in name]
        assert counts.get(kind, 0) == sum(found)
    assert counts["total"] == sum(p.numel() for p in model.parameters())


# Parameters of the published checkpoints: https://huggingface.co/LiquidAI
@pytest.mark.parametrize(
    ("hf", "n_parameters"),
    [
        (
            {"model_type": "lfm2", "block_ff_dim": 6656, "hidden_size": 1024, "num_hidden_layers": 16,
             "num_attention_heads": 16, "full_attn_idxs": [2, 5, 8, 10, 12, 14]}, 354_483_968
        ),
        (
            {"model_type": "lfm2", "block_ff_dim": 12288, "hidden_size": 2048, "num_hidden_layers": 16,
             "num_attention_heads": 32, "full_attn_idxs": [2, 5, 8, 10, 12, 14]}, 1_170_340_608
        ),
    ],
)  # fmt: skip
def test_published_checkpoints_have_as_many_parameters(hf, n_parameters):
    with torch.device("meta"):
        model = GPT(Config.from_hf(hf))
    assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"layer_types": ["conv", "full_attention", "mamba"]},
            "layer_types 'mamba' is not supported; supported: full_attention",
        ),
        ({"layer_types": ["conv"]}, "layer_types must have an entry for each of 3 layers, found 1"),
        ({"full_attn_idxs": [1.5]}, "full_attn_idxs must be a list of integers, found 1.5"),
        ({"conv_L_cache": 0}, "conv_L_cache must be a positive integer"),
        ({"conv_L_cache": 2**31}, "more than 1e.13 is refused"),
    ],
)
def test_a_wrong_config_is_an_error(changes, told):
    hf = {"model_type": "lfm2", "num_hidden_layers": 3, "full_attn_idxs": [1]}
    with pytest.raises(ValueError, match=told):
        Config.from_hf(hf | changes)


@torch.inference_mode()
def test_a_layer_of_one_tap_keeps_nothing(tmp_path):
    case = replace(BY_NAME["lfm2"], sizes={**BY_NAME["lfm2"].sizes, "conv_L_cache": 1})
    reference, ids = make_reference(case, tmp_path), random_ids(case, 1, 9)
    model = load_model(tmp_path)
    assert relative_difference(model(ids), reference(ids).logits) < 1e-5
    cache = make_cache(model, 1, 10)
    prefill(model, cache, [ids[0, :8].tolist()])
    assert relative_difference(decode_step(model, cache, [int(ids[0, 8])], [8]), model.hidden(ids)[:, -1]) < 1e-5
