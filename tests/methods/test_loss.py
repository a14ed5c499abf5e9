import pytest
import torch
import torch.nn.functional as F
from tiny import hf_model

import lit_llm.methods.loss as loss_module
from lit_llm.data.batches import collate
from lit_llm.data.examples import Example
from lit_llm.methods.loss import cross_entropy_sum, next_token_loss
from lit_llm.model.config import Config
from lit_llm.model.gpt import GPT


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(Config("llama", 320, 64, 2, 4, 2, 32, 8, 48, rotary_size=8))


@pytest.mark.parametrize("head_trains", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 50])
def test_chunked_loss_and_gradient_equal_one_cross_entropy(model, monkeypatch, head_trains, rows):
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", 320 * 8)  # chunks of 8 rows
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(head_trains)
    hidden, targets = torch.randn(rows, 32), torch.randint(320, (rows,))
    results = []
    for compute in (cross_entropy_sum, lambda m, h, t: F.cross_entropy(m.head(h), t, reduction="sum")):
        h = hidden.clone().requires_grad_()
        model.lm_head.weight.grad = None
        total = compute(model, h, targets)
        (total * 0.37).backward()
        results.append((total.detach(), h.grad, model.lm_head.weight.grad))
    (total, grad, head_grad), (expected, expected_grad, expected_head_grad) = results
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-6)
    assert (head_grad is None) == (not head_trains)
    if head_trains:
        torch.testing.assert_close(head_grad, expected_head_grad, rtol=1e-5, atol=1e-6)


def test_no_labels_give_a_loss_of_zero_and_a_gradient_of_zero(model):
    model.requires_grad_(False)
    hidden = torch.randn(0, 32, requires_grad=True)
    total = cross_entropy_sum(model, hidden, torch.zeros(0, dtype=torch.long))
    total.backward()
    assert total.item() == 0


def test_micro_batch_loss_equals_transformers_on_each_example(checkpoint):
    from transformers import AutoModelForCausalLM

    from lit_llm.checkpoint.load_model import load_model

    ours, theirs = load_model(checkpoint), AutoModelForCausalLM.from_pretrained(checkpoint)
    torch.manual_seed(1)
    examples = []
    expected = 0.0
    for length, n_masked in ((5, 2), (17, 9), (2, 1), (30, 0)):
        ids = torch.randint(320, (length,))
        trained = torch.arange(length) >= n_masked
        examples.append(Example(ids.int(), trained))
        labels = ids.where(trained, -100)
        n = int(trained[1:].sum())
        expected += theirs(ids[None], labels=labels[None]).loss.item() * n
    batch = collate(examples)
    total, _ = next_token_loss(ours, batch)
    assert batch.n_targets == 3 + 8 + 1 + 29
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_hf_model_is_random_everywhere():
    """The reference would prove little if norms were all ones and biases all zeros."""
    for parameter in hf_model("gpt_neox").parameters():
        assert parameter.std() > 0.05
