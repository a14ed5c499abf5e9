import copy

import pytest
import torch
from lightning.fabric import Fabric
from methods import randomize
from tiny import rows

from lit_llm.args.finetune import FinetuneArgs, TrainArgs
from lit_llm.checkpoint.load_model import load_model
from lit_llm.data.batches import StepPlan
from lit_llm.data.examples import tokenize_all
from lit_llm.methods.inject import freeze
from lit_llm.methods.lora import LoRA, Update, merge
from lit_llm.methods.loss import next_token_loss
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.training.loop import Job, fit
from lit_llm.training.objective import Objective
from lit_llm.training.optimizers import make_optimizer
from lit_llm.training.preflight import first_epoch
from lit_llm.training.run_data import RunData
from lit_llm.training.run_folder import RunFolder
from lit_llm.training.schedule import Schedule


def attached(checkpoint, **arguments):
    model = load_model(checkpoint)
    torch.manual_seed(3)
    method = LoRA(**arguments)
    method.attach(model)
    return model, method


def test_dora_is_a_no_op_at_initialisation_for_rows_of_zeros(checkpoint):
    ids, base = torch.arange(2, 30)[None], load_model(checkpoint)
    model = load_model(checkpoint)
    for one in (base, model):
        for block in one.h:
            block.attn.o.weight.data[::3] = 0
            block.attn.q.weight.data[5] = 0
    method = LoRA(targets="all-linear", use_dora=True, dropout=0)
    method.attach(model)
    freeze(model, method)
    expected = base(ids)
    torch.testing.assert_close(model(ids), expected, rtol=1e-5, atol=1e-5)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(ids).logsumexp(-1).mean().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        optimizer.step()
    trained = model.eval()(ids)
    assert (trained - expected).abs().max() > 1e-2
    merge(model)
    assert not model.h[0].attn.o.weight[::3].any()
    torch.testing.assert_close(model(ids), trained, rtol=1e-5, atol=1e-5)


def test_lora_is_a_no_op_at_initialisation(checkpoint):
    ids = torch.arange(2, 30)[None]
    model, _ = attached(checkpoint, targets="all-linear")
    assert torch.equal(model.eval()(ids), load_model(checkpoint)(ids))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("q,v", {"q", "v"}),
        ("[q,v]", {"q", "v"}),
        (["q", "v"], {"q", "v"}),
        ("attn", {"q", "k", "v", "o"}),
        ("mlp", {"gate", "up", "down"}),
        ("all-linear", {"q", "k", "v", "o", "gate", "up", "down"}),
        ("all-linear,head", {"q", "k", "v", "o", "gate", "up", "down", "lm_head"}),
    ],
)
def test_targets_name_the_adapted_linears(checkpoint, targets, expected):
    model, _ = attached(checkpoint, targets=targets)
    found = {name.split(".lora.")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora." in name}
    assert found == expected


def test_a_target_that_matches_nothing_lists_what_exists(checkpoint):
    with pytest.raises(ValueError, match=r"'qkv' matches no linear.*q, k, v, o, gate, up, down, head"):
        attached(checkpoint, targets="q,qkv")


def test_base_weights_keep_their_names(checkpoint):
    before = load_model(checkpoint).state_dict().keys()
    model, _ = attached(checkpoint, targets="all-linear")
    assert {name for name in model.state_dict() if ".lora." not in name} == before


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_merged_logits_equal_adapter_logits(checkpoint, variant):
    model, _ = attached(checkpoint, targets="all-linear,head", dropout=0.0, **variant)
    torch.manual_seed(4)
    randomize(model)
    ids = torch.arange(2, 60)[None]
    with torch.no_grad():
        base, adapted = load_model(checkpoint)(ids), model.eval()(ids)
        merge(model)
        torch.testing.assert_close(model(ids), adapted, rtol=1e-5, atol=1e-5)
    assert (adapted - base).abs().max() > 0.1
    assert model.state_dict().keys() == load_model(checkpoint).state_dict().keys()


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_three_steps_equal_peft(checkpoint, variant):
    """Same weights, batch, optimizer and learning rates: PEFT on transformers, its loss over the padded batch."""
    import peft
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer(checkpoint)
    examples, _ = tokenize_all(rows(8), "alpaca", tokenizer, True, 256)
    train = TrainArgs(global_batch_size=8, micro_batch_size=2, max_steps=3, learning_rate=0.01, lr_warmup_steps=0)
    model, method = attached(checkpoint, r=4, alpha=8, dropout=0.0, **variant)
    start = copy.deepcopy({name: p.detach() for name, p in model.named_parameters() if method.trainable(name)})

    config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], **variant)
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), config)
    names = {}
    for name in start:
        _, layer, _, linear, _, matrix = name.split(".")
        matrix = {"magnitude": "magnitude_vector"}.get(matrix, matrix)
        names[name] = f"base_model.model.model.layers.{layer}.self_attn.{linear}_proj.lora_{matrix}.default.weight"
    parameters = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, tensor in start.items():
            parameters[names[name]].copy_(tensor)
    longest = max(map(len, examples))
    ids = torch.stack([torch.nn.functional.pad(e.ids.long(), (0, longest - len(e))) for e in examples])
    mask = torch.stack([torch.arange(longest) < len(e) for e in examples]).long()
    padded = [torch.nn.functional.pad(e.trained, (0, longest - len(e))) for e in examples]
    labels = ids.where(torch.stack(padded), -100)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = Schedule.from_args(train, 1)
    for step in range(3):
        theirs(ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.param_groups[0]["lr"] = schedule.at(step, 0)
        optimizer.step()
        optimizer.zero_grad()

    fit_lora(model, method, examples, train)
    for name, tensor in model.named_parameters():
        if method.trainable(name):
            torch.testing.assert_close(tensor.detach(), parameters[names[name]].detach(), rtol=1e-4, atol=1e-6)
            assert not torch.equal(tensor, start[name])


def fit_lora(model, method, examples, train, validation=(), out_dir=None):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        fabric = Fabric(accelerator="cpu", devices=1)
        optimizer = make_optimizer(model, method, train, fabric.device)
        objective, optimizer = fabric.setup(Objective(model, next_token_loss), optimizer)
        plan = StepPlan([len(e) for e in examples], train.global_batch_size, train.micro_batch_size, 256, train.packing, 0)
        data = RunData(examples, plan, first_epoch(plan), {"data": validation} if validation else {})
        job = Job(FinetuneArgs(train=train), method, data, RunFolder(out_dir or Path(folder)))
        return fit(fabric, objective, optimizer, job, lambda folder: None)


def test_dropout_has_its_gradient_and_keeps_a_byte_per_element():
    update = Update(16, 8, r=4, scale=2.0, dropout=0.4).train()
    torch.nn.init.normal_(update.B)
    x = torch.randn(5, 3, 16, requires_grad=True)
    held = []
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        found = update(x)
    others = [t for t in held if t.numel() == x.numel() and t.data_ptr() != x.data_ptr()]
    assert [t.dtype for t in others] == [torch.bool]
    torch.manual_seed(3)
    kept = torch.empty_like(x, dtype=torch.bool).bernoulli_(0.6)
    expected = 2.0 * (x * kept / 0.6) @ update.A.T @ update.B.T
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    inputs, weight = (x, update.A, update.B), torch.randn_like(found)
    both = (torch.autograd.grad((y * weight).sum(), inputs) for y in (found, expected))
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_dropout_trains_with_autocast():
    """Weights are float32, products bfloat16: gradients are those of float32 within what 8 bits of precision allow."""
    update = Update(64, 64, r=4, scale=1.0, dropout=0.5).train()
    torch.nn.init.normal_(update.B)
    x, gradients = torch.randn(50, 64), []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = update(x)
        assert y.dtype == dtype
        gradients.append(torch.autograd.grad(y.float().square().sum(), update.A)[0])
    assert gradients[1].dtype == torch.float32
    assert (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 2e-2


def test_lora_plus_moves_b_faster(checkpoint):
    """One step of AdamW moves each weight by about its learning rate."""
    examples, _ = tokenize_all(rows(4), "alpaca", Tokenizer(checkpoint), True, 256)
    train = TrainArgs(max_steps=1, learning_rate=0.001, lr_warmup_steps=0, weight_decay=0.0)
    moved = []
    for ratio in (1.0, 16.0):
        model, method = attached(checkpoint, dropout=0.0, lr_ratio=ratio)
        fit_lora(model, method, examples, train)
        moved.append(max(p.abs().max().item() for n, p in model.named_parameters() if n.endswith("lora.B")))
    assert moved[1] == pytest.approx(16 * moved[0], rel=1e-3)


def test_two_steps_move_all_trained_weights_and_no_other(checkpoint):
    from lit_llm.data.batches import collate

    examples, _ = tokenize_all(rows(8), "alpaca", Tokenizer(checkpoint), True, 256)
    model, method = attached(checkpoint, targets="all-linear,head")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train = TrainArgs(global_batch_size=4, micro_batch_size=2, max_steps=2, learning_rate=0.01)
    state = fit_lora(model, method, examples, train, [collate(examples[:3])])
    assert state.first_val_loss is not None
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != method.trainable(name), name


def test_trained_parameters_are_float32_over_a_bfloat16_base(checkpoint):
    model = load_model(checkpoint, dtype=torch.bfloat16)
    method = LoRA()
    method.attach(model)
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    optimizer = torch.optim.AdamW(freeze(model, method))
    objective, _ = fabric.setup(Objective(model, next_token_loss), optimizer)
    for name, parameter in objective.named_parameters():
        assert parameter.dtype == (torch.float32 if ".lora." in name else torch.bfloat16)
