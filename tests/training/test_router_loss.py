"""The auxiliary loss of routers against transformers."""

import csv

import pytest
import torch
from families import BY_NAME, make_reference, relative_difference
from tiny import make_checkpoint, make_data
from torch.nn.utils.rnn import pad_sequence

from lit_llm.checkpoint.load_model import load_model
from lit_llm.data.batches import MicroBatch
from lit_llm.methods.loss import next_token_loss
from lit_llm.training.objective import Objective

COEFFICIENT = 0.3


def _batch(documents: list[torch.Tensor]) -> MicroBatch:
    """Every token but the first of a document is a label."""
    ids, lengths = torch.cat(documents), tuple(map(len, documents))
    ends = torch.tensor(lengths).cumsum(0) - 1
    positions = torch.tensor([i for i in range(len(ids)) if i not in ends])
    return MicroBatch(ids[None], lengths, positions, ids[positions + 1], len(positions))


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe-sparse-step", "olmoe"])
def test_loss_and_gradients_equal_transformers(name, recompute, tmp_path):
    """Packed documents against padded rows, whose padding does not count."""
    case = BY_NAME[name]
    reference = make_reference(case, tmp_path)
    documents = [torch.randint(1, case.vocab_size, (n,)) for n in (9, 4, 17)]
    ids, mask = (pad_sequence(rows, batch_first=True) for rows in (documents, [torch.ones_like(d) for d in documents]))
    reference.config.router_aux_loss_coef = reference.router_aux_loss_coef = COEFFICIENT
    labels = ids.masked_fill(mask == 0, -100)
    theirs = reference(ids, attention_mask=mask, labels=labels, output_router_logits=True)
    theirs.loss.backward()

    model = load_model(tmp_path).requires_grad_(True)
    model.activation_checkpointing = recompute
    batch = _batch(documents)
    loss, shown = Objective(model, next_token_loss, None, COEFFICIENT).train()(batch)
    (loss / batch.n_targets).backward()
    assert loss.item() / batch.n_targets == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert shown["router_loss"].item() / batch.n_targets == pytest.approx(theirs.aux_loss.item(), rel=1e-5)
    assert shown["train_loss"].item() == pytest.approx(next_token_loss(model, batch)[0].item(), rel=1e-6)
    gates = {n: p.grad for n, p in reference.named_parameters() if n.endswith("mlp.gate.weight")}
    routers = [block.mlp.router.weight.grad for block in model.h if hasattr(block.mlp, "router")]
    assert len(gates) == len(routers) > 0
    for grad, router in zip(gates.values(), routers, strict=True):
        assert relative_difference(router, grad) < 1e-5


def test_validation_is_without_it(tmp_path):
    make_reference(BY_NAME["mixtral"], tmp_path)
    model, batch = load_model(tmp_path), _batch([torch.arange(1, 9)])
    loss, shown = Objective(model, next_token_loss, None, COEFFICIENT).eval()(batch)
    assert torch.equal(loss, next_token_loss(model, batch)[0])
    assert not shown


def test_it_is_a_column_of_the_metrics(tmp_path, script):
    base = make_checkpoint(tmp_path / "base", "mixtral", num_local_experts=4, num_key_value_heads=2)
    make_data(tmp_path / "data", 8, 2)
    flags = ["--checkpoint_dir", base, "--data_dir", "data", "--train.max_steps=2", "--eval.samples=0"]
    script("finetune/lora.py", *flags, "--train.router_loss=0.01", "--out_dir=run")
    with open(tmp_path / "run" / "metrics.csv") as file:
        values = [float(row["router_loss"]) for row in csv.DictReader(file) if row["router_loss"]]
    assert len(values) == 2
    assert all(1 < value < 4 for value in values)  # all alike give K = 2, all tokens to the same experts E = 4


@pytest.mark.parametrize(
    ("family", "sizes", "reason"),
    [
        ("llama", {}, "of type llama have none"),
        (
            "dots1",
            {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "num_key_value_heads": 2},
            "a bias for the choice",
        ),
    ],
)
def test_it_is_refused_where_it_is_not_defined(family, sizes, reason, tmp_path, script):
    base = make_checkpoint(tmp_path / "base", family, **sizes)
    make_data(tmp_path / "data", 8, 2)
    flags = ["--checkpoint_dir", base, "--data_dir", "data", "--train.router_loss=0.01"]
    done = script("finetune/lora.py", *flags, check=False)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "--train.router_loss 0.01" in done.stderr
