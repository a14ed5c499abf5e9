"""Results that are made again for the backward pass: the same gradients, and nothing held that need not be."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from families import BY_NAME, all_families, make_reference, random_ids
from methods import METHODS, documents

from lit_llm.checkpoint.load_model import load_model
from lit_llm.data.batches import collate
from lit_llm.estimation.step_memory import estimate
from lit_llm.methods.full import Full
from lit_llm.methods.inject import freeze
from lit_llm.methods.lora import LoRA
from lit_llm.methods.loss import next_token_loss
from lit_llm.model import delta_net, experts, gpt, norms, short_convolution
from lit_llm.model.config import Config
from lit_llm.model.recompute import recipes_for_results, recomputed

LLAMA = Config.from_hf({
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4,
    "vocab_size": 128,
})  # fmt: skip


@pytest.mark.parametrize("case", all_families())
def test_no_gradient_changes(case, tmp_path, monkeypatch):
    """Of any method on any family, in float32 and with autocast, but for the order of sums."""
    make_reference(case, tmp_path)
    batch = collate(documents(case.vocab_size, 3))

    def gradients(make_method, dtype):
        model, method = load_model(tmp_path), make_method()
        torch.manual_seed(0)
        method.attach(model)
        trained = freeze(model, method)
        for p in trained:
            torch.nn.init.normal_(p, std=0.2)
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss, _ = next_token_loss(model.train(), batch)
        return torch.autograd.grad(loss, trained)

    methods = [*METHODS.values(), lambda: LoRA(targets="all-linear", dropout=0.3)]
    cases = [(m, torch.float32) for m in methods] + [(m, torch.bfloat16) for m in methods[:1] + methods[-1:]]
    found = [gradients(*case) for case in cases]
    for module in (delta_net, experts, gpt, norms, short_convolution):
        monkeypatch.setattr(module, "recomputed", lambda make, *inputs: make(*inputs))
    for grads, (make_method, dtype) in zip(found, cases, strict=True):
        expected = gradients(make_method, dtype)
        largest = max(g.norm() for g in expected)  # some are zero but for rounding, such as those of the biases of keys
        for a, b in zip(grads, expected, strict=True):
            # In another order a sum may round to the neighbouring bfloat16 number.
            tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
            assert (a - b).norm() < tolerance * (b.norm() + largest / 100)


def test_what_a_result_was_made_from_is_held_and_not_the_result():
    """Whoever keeps it: a linear whose weight trains (as a view), a product; it is made again once for all of them."""
    calls, results = [], []

    def make(x, bias):
        result = x.sin() + bias
        calls.append(torch.is_grad_enabled())
        results.append(weakref.ref(result.untyped_storage()))
        return result

    leaf, weight = torch.randn(2, 3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    bias = torch.randn(4, requires_grad=True)

    def loss(make):
        x = leaf * 2
        y = make(x)
        return (F.linear(y, weight) ** 2).sum() + (y * y * x).sum()

    expected = torch.autograd.grad(loss(lambda x: x.sin() + bias), (leaf, weight, bias))
    with recipes_for_results():
        total = loss(lambda x: recomputed(make, x, bias))
    assert calls == [False]
    assert results[0]() is None
    found = torch.autograd.grad(total, (leaf, weight, bias))
    assert calls == [False, True]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert results[1]() is None  # though `total` is still there
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()


def test_an_input_may_be_missing_or_frozen():
    x, frozen = torch.randn(3, requires_grad=True), torch.randn(3)
    (recomputed(lambda x, a, b: x * a, x, frozen, None)).sum().backward()
    torch.testing.assert_close(x.grad, frozen)
    assert not recomputed(lambda a: a * 2, frozen).requires_grad


@pytest.mark.parametrize("context", [nullcontext, recipes_for_results])
@pytest.mark.parametrize("function", [lambda x: recomputed(torch.sin, x), torch.sin])
def test_a_changed_input_is_an_error(context, function):
    x = torch.randn(3, requires_grad=True)
    inner = x * 2
    with context():
        y = function(inner)
    inner.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


@pytest.mark.parametrize("method", [LoRA(targets="all-linear"), Full()], ids=lambda m: m.name)
def test_a_graph_is_gone_with_its_loss(method):
    """Without the garbage collector: it would come too late."""
    model = gpt.GPT(LLAMA)
    method.attach(model)
    freeze(model, method)
    kept = []
    model.h[1].register_forward_hook(lambda block, inputs, output: kept.append(weakref.ref(output.untyped_storage())))
    gc.collect()
    gc.disable()
    try:
        for backward in (False, True):
            loss, _ = next_token_loss(model.train(), collate(documents(128, 2)))
            if backward:
                loss.backward()
            del loss
            assert kept[-1]() is None
    finally:
        gc.enable()


def test_bytes_of_a_block():
    """Activations of a token in a block, in units of C floats: two inputs of norms, q, k, v, the output of the heads, gate and
    up, and for each adapter's dropout a byte for each element of its input."""
    n, C, width = 256, LLAMA.n_embd, LLAMA.intermediate_size

    def held(method):
        found = estimate(LLAMA, method, 1, n, False, False, "32-true", None)["memory_bytes"]["activations"]
        return found / (4 * n * LLAMA.n_layer)

    floats = 6 * C + 2 * width
    masks = 6 * C + width
    small = (7 * 8 * 2 + 24) * 1.0  # A x of seven linears and its scaled copy; statistics of the attention and of the norms
    assert held(Full()) < floats + 2 * C + small  # and the model's input and last norm, over all blocks
    assert held(LoRA(targets="all-linear", dropout=0.0)) < floats + 2 * C + small
    assert held(LoRA(targets="all-linear", dropout=0.1)) < floats + masks / 4 + 2 * C + small


def test_activation_checkpointing_drops_the_inputs_too():
    by = [
        estimate(LLAMA, LoRA(targets="all-linear"), 1, 256, False, on, "32-true", None)["memory_bytes"]["activations"]
        for on in (True, False)
    ]
    blocks = LLAMA.n_layer * LLAMA.n_embd * 256 * 4  # the input of each block
    assert by[0] < 2 * blocks < by[1] / 3


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt-350m"])
def test_a_block_is_not_asked_again_for_its_result(name, tmp_path):
    """FSDP frees the weights of a block after its forward pass, and gathers them when its own backward pass begins."""
    case = BY_NAME[name]
    make_reference(case, tmp_path)
    model, results = load_model(tmp_path).train(), []
    model.requires_grad_(True)
    for block in model.h:
        block.register_forward_hook(lambda module, inputs, output: results.append(output.grad_fn.name()))
    model(random_ids(case, 1, 8))
    assert len(results) == len(model.h)
    assert not any("Recomputed" in result for result in results)
