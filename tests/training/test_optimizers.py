"""Optimizers by name: their algebra, their state in a save, and where they do not run."""

import copy

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from tiny import rows

from lit_llm.args.finetune import TrainArgs
from lit_llm.checkpoint.load_model import load_model
from lit_llm.data.batches import collate
from lit_llm.data.examples import tokenize_all
from lit_llm.estimation.step_memory import STATE_BYTES
from lit_llm.methods.full import Full
from lit_llm.methods.loss import next_token_loss
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.training.loop import optimizer_step
from lit_llm.training.objective import Objective
from lit_llm.training.optimizers import check_optimizer, make_optimizer, state_tensors
from lit_llm.training.saves import State, load_state, save_state

ON_CPU = [name for name in STATE_BYTES if not name.startswith("paged")]


def prepared(checkpoint, name, **options):
    model, method = load_model(checkpoint), Full()
    method.attach(model)
    return model, make_optimizer(model, method, TrainArgs(optimizer=name, learning_rate=1e-2, **options), torch.device("cpu"))


def step(model, optimizer, seed):
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("name", ON_CPU)
def test_a_save_brings_back_the_optimizer_to_the_bit(tmp_path, checkpoint, name):
    model, optimizer = prepared(checkpoint, name)
    for seed in range(3):
        step(model, optimizer, seed)
    save_state(tmp_path / "save", State(), model, optimizer, lambda folder: None)
    other, other_optimizer = prepared(checkpoint, name)
    load_state(tmp_path / "save", other, other_optimizer)
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(other, other_optimizer, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    expected, found = state_tensors(optimizer), state_tensors(other_optimizer)
    assert expected.keys() == found.keys()
    assert all(expected[n].dtype == found[n].dtype and torch.equal(expected[n], found[n]) for n in expected)
    assert any(tensor.dtype == torch.uint8 for tensor in expected.values()) == name.endswith("8bit")


def test_lion_is_that_of_the_paper(checkpoint):
    """https://arxiv.org/abs/2302.06675, algorithm 2."""
    model, optimizer = prepared(checkpoint, "lion", weight_decay=0.1)
    expected = copy.deepcopy(model.wte.weight.detach())
    average = torch.zeros_like(expected)
    for seed in range(3):
        step(model, optimizer, seed)
        gradient = model.wte.weight.grad
        expected -= 1e-2 * ((0.9 * average + 0.1 * gradient).sign() + 0.1 * expected)
        average = 0.99 * average + 0.01 * gradient
    torch.testing.assert_close(model.wte.weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_adafactor_moves_zero_weights_as_far_as_adamw(checkpoint):
    """As LoRA's B: a step in proportion to the parameter would leave it there."""
    moved = {}
    for name in ("adamw", "adafactor"):
        model, optimizer = prepared(checkpoint, name)
        torch.nn.init.zeros_(model.wte.weight)
        for seed in range(10):
            step(model, optimizer, seed)
        moved[name] = model.wte.weight.detach().norm().item()
    assert moved["adafactor"] == pytest.approx(moved["adamw"], rel=0.5)


def test_adamw_with_8_bit_state_stays_close_to_that_with_32(checkpoint):
    """Measured as a part of the way that the weights have gone: an average in 8 bits is off by a few percent."""
    moved = {}
    for name in ("adamw", "adamw8bit"):
        model, optimizer = prepared(checkpoint, name)
        start = model.wte.weight.detach().clone()
        for seed in range(10):
            step(model, optimizer, seed)
        moved[name] = model.wte.weight.detach() - start
    distance = (moved["adamw8bit"] - moved["adamw"]).norm() / moved["adamw"].norm()
    assert 0 < distance < 0.1


@pytest.mark.parametrize("name", [name for name in ON_CPU if name != "adafactor"])
def test_bytes_of_state_are_those_that_an_estimate_counts_with(name):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2**18))

    model = Model()
    optimizer = make_optimizer(model, Full(), TrainArgs(optimizer=name), torch.device("cpu"))
    step(model, optimizer, 0)
    assert sum(t.nbytes for t in state_tensors(optimizer).values()) == pytest.approx(2**18 * STATE_BYTES[name], rel=0.02)


def test_paged_state_needs_cuda_and_bitsandbytes_a_cpu_or_cuda():
    with pytest.raises(ValueError, match="Use lion8bit"):
        check_optimizer("paged_lion8bit", torch.device("cpu"))
    with pytest.raises(ValueError, match="does not run on mps"):
        check_optimizer("lion", torch.device("mps"))
    check_optimizer("paged_lion8bit", torch.device("cuda"))


def test_float16_is_scaled_clipped_skipped_and_resumed(tmp_path, checkpoint):
    """What `16-mixed` does on a GPU, with a scaler on the CPU: Fabric would take bfloat16 here."""

    def started():
        model, method = load_model(checkpoint), Full()
        method.attach(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
        optimizer = make_optimizer(model, method, TrainArgs(learning_rate=1e-3), torch.device("cpu"), scaled=True)
        objective, optimizer = fabric.setup(Objective(model, next_token_loss), optimizer)
        return (
            model,
            scaler,
            lambda: optimizer_step(fabric, objective, optimizer, [[0, 1], [2]], examples, 1e-3, 1.0),
            optimizer,
        )

    examples, _ = tokenize_all(rows(3), "alpaca", Tokenizer(checkpoint), True, 256)
    model, scaler, step, optimizer = started()
    before = model.norm.weight.detach().clone()
    first = step()
    assert torch.isfinite(first["grad_norm"]) and not torch.equal(model.norm.weight, before)
    float32 = load_model(checkpoint)
    expected, _ = next_token_loss(float32, collate(examples))
    assert first["train_loss"].item() == pytest.approx(expected.item() / sum(e.n_targets for e in examples), rel=1e-2)
    scaler.update(2.0**40)
    before = model.norm.weight.detach().clone()
    step()
    assert torch.equal(model.norm.weight, before)
    assert scaler.get_scale() == 2.0**39
    save_state(tmp_path / "save", State(), model, optimizer, lambda folder: None, scaler)
    other, other_scaler, _, other_optimizer = started()
    load_state(tmp_path / "save", other, other_optimizer, other_scaler)
    assert other_scaler.state_dict() == scaler.state_dict()
