"""The kernel for all documents at once, which only CUDA has, against one attention for each document."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lit_llm.model.attention import Documents, _attend_by_document, _attend_varlen, _runs_varlen

LENGTHS = (7, 130, 64, 1)


def projections(n_head, n_query_groups, head_size, dtype, device):
    torch.manual_seed(0)
    return [
        torch.randn(1, n, sum(LENGTHS), head_size, dtype=dtype, device=device, requires_grad=True)
        for n in (n_head, n_query_groups, n_query_groups)
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("n_query_groups", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("scale", [None, 0.05])
def test_varlen_kernel_equals_attention_per_document(n_query_groups, window, scale):
    """Outputs and gradients in bfloat16 against float32: 8 bits of precision, so that they differ by less than one percent."""
    inputs = projections(4, n_query_groups, 64, torch.bfloat16, "cuda")
    documents = Documents(LENGTHS, inputs[0].device)
    assert _runs_varlen(inputs[0])
    weight = torch.randn(1, 4, sum(LENGTHS), 64, device="cuda")
    found = _attend_varlen(*inputs, documents, window, scale)
    found_grads = torch.autograd.grad((found * weight).sum(), inputs)
    exact_inputs = [x.detach().float().requires_grad_() for x in inputs]
    exact = _attend_by_document(*exact_inputs, documents, window, scale, None)
    exact_grads = torch.autograd.grad((exact * weight).sum(), exact_inputs)
    for a, b in zip((found, *found_grads), (exact, *exact_grads), strict=True):
        assert (a.float() - b).norm() / b.norm() < 1e-2


class Calls(TorchDispatchMode):
    """What the kernel is called with."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "varlen" in str(func):
            self.found.append(args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("window", "expected"), [(None, (True, [-1, 0])), (16, (False, [15, 0]))])
def test_varlen_kernel_is_called_causal_within_documents(window, expected):
    """On tensors without values: layout, documents, window and groups of heads."""
    with torch.no_grad(), Calls() as calls:
        q, k, v = projections(4, 2, 64, torch.bfloat16, "meta")
        assert _attend_varlen(q, k, v, Documents(LENGTHS, q.device), window, 0.1).shape == q.shape
    ((q_, k_, v_, bounds, _, max_q, max_k, is_causal, scale, sides, gqa, *_),) = calls.found
    assert q_.shape == (sum(LENGTHS), 4, 64) and k_.shape == v_.shape == (sum(LENGTHS), 2, 64)
    assert bounds.shape == (5,) and bounds.dtype == torch.int32
    assert (max_q, max_k, scale, gqa) == (130, 130, 0.1, True)
    assert (is_causal, sides) == expected


def test_values_with_fewer_dimensions_are_padded_for_the_kernel():
    """As in multi-head latent attention: the kernel has one head size."""
    with torch.no_grad(), Calls() as calls:
        q, k, v = projections(4, 4, 64, torch.bfloat16, "meta")
        v = v[..., :40]
        assert _attend_varlen(q, k, v, Documents(LENGTHS, q.device), None, 0.1).shape == v.shape
    assert [x.shape[-1] for x in calls.found[0][:3]] == [64, 64, 64]


def test_varlen_kernel_takes_half_precision_and_known_head_sizes(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    with FakeTensorMode():

        def runs(dtype=torch.bfloat16, head_size=64, device="cuda"):
            return _runs_varlen(projections(4, 4, head_size, dtype, device)[0])

        assert runs() and runs(torch.float16) and runs(head_size=256)
        assert not runs(torch.float32)
        assert not runs(head_size=20) and not runs(head_size=264)
        assert not runs(device="cpu")
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
        assert not runs()
