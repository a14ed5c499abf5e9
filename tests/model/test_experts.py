"""Mixtures of experts: grouped products equal one product after another, and read the weights where they are."""

import pytest
import torch
from cases_experts import EXPERTS
from families import BY_NAME, make_reference, random_ids, relative_difference

from lit_llm.checkpoint.load_model import load_model
from lit_llm.model import experts, grouped
from lit_llm.model.experts import MoE

_FAMILIES = ["mixtral", *dict.fromkeys(family for _, family, _ in EXPERTS)]


def _case(name: str):
    return BY_NAME[name]


@pytest.fixture
def on_grouped_products(monkeypatch):
    """The products that a GPU runs, on the CPU."""
    monkeypatch.setattr(experts, "runs_grouped", lambda x, linears: all(map(grouped._is_plain, linears)))


@pytest.mark.parametrize("together", [False, True], ids=["apart", "together"])
@pytest.mark.parametrize("family", _FAMILIES)
def test_grouped_products_equal_single_ones(family, together, tmp_path, monkeypatch):
    make_reference(_case(family), tmp_path)
    outputs, grads = [], []
    for runs in (False, True):
        monkeypatch.setattr(experts, "runs_grouped", lambda x, linears, runs=runs: runs)
        model = load_model(tmp_path).train().requires_grad_(True)
        for module in model.modules():
            if together and isinstance(module, MoE):
                module.put_together()
        logits = model(random_ids(_case(family), 1, 3))  # fewer tokens than experts
        (logits * torch.linspace(-1, 1, logits.size(-1))).sum().backward()
        outputs.append(logits.detach())
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert relative_difference(outputs[1], outputs[0]) < 1e-5
    assert grads[1].keys() == grads[0].keys()
    for name, grad in grads[0].items():
        assert (grads[1][name] - grad).abs().max() <= 1e-5 * max(1, grad.abs().max()), name


def test_experts_without_tokens_get_a_gradient_of_zero(on_grouped_products, tmp_path):
    """Also where a kernel leaves memory as it was."""
    make_reference(_case("mixtral"), tmp_path)
    model = load_model(tmp_path).train().requires_grad_(True)
    model(random_ids(_case("mixtral"), 1, 1)).sum().backward()
    grads = [expert.down.weight.grad for expert in model.h[0].mlp.experts]
    assert sorted(bool(grad.any()) for grad in grads) == [False, False, True, True]


def test_weights_next_to_each_other_are_not_copied(tmp_path):
    make_reference(_case("olmoe"), tmp_path)
    moe = load_model(tmp_path).h[0].mlp
    before = [expert.up.weight.clone() for expert in moe.experts]
    assert grouped.stacked([e.up.weight for e in moe.experts], torch.float32).data_ptr() != moe.experts[0].up.weight.data_ptr()
    moe.put_together()
    weights = [expert.up.weight for expert in moe.experts]
    view = grouped.stacked(weights, torch.float32)
    assert view.data_ptr() == weights[0].data_ptr()
    assert torch.equal(view, torch.stack(before))
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


@pytest.mark.parametrize("change", ["quantize", "lora"])
def test_experts_that_are_no_plain_linears_run_one_by_one(change, on_grouped_products, tmp_path):
    from lit_llm.methods.lora import LoRA

    make_reference(_case("mixtral"), tmp_path)
    model = load_model(tmp_path, quantize="bnb.nf4" if change == "quantize" else None).eval()
    if change == "lora":
        LoRA(targets="mlp").attach(model)
        for module in model.modules():
            if hasattr(module, "lora"):
                torch.nn.init.ones_(module.lora.B)
    ran = []
    model.h[0].mlp.experts[0].down.register_forward_hook(lambda *_: ran.append(True))
    model(random_ids(_case("mixtral"), 1, 24))
    assert ran


def test_files_that_lack_an_expert_are_refused(tmp_path):
    """The message names the tensor and the next step."""
    from safetensors.torch import load_file, save_file

    make_reference(_case("dots1"), tmp_path)
    path, name = tmp_path / "model.safetensors", "model.layers.2.mlp.experts.5.up_proj.weight"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"1 tensors are missing, among them {name}. Download the checkpoint again"):
        load_model(tmp_path)


def test_the_bias_of_the_choice_stays_float32_and_untrained(tmp_path):
    """Rounded to bfloat16 it would choose other experts."""
    from safetensors.torch import load_file

    from lit_llm.methods.full import Full
    from lit_llm.methods.inject import freeze

    make_reference(_case("dots1"), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")["model.layers.1.mlp.gate.e_score_correction_bias"]
    model, method = load_model(tmp_path, dtype=torch.bfloat16), Full()
    method.attach(model)
    trained = freeze(model, method)
    bias = model.h[1].mlp.router.choice_bias
    assert bias.dtype == torch.float32
    assert torch.equal(bias, stored)
    assert all(parameter is not bias for parameter in trained)
