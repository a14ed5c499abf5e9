"""A packed step equals an unpacked one, on real rows; and no document sees another."""

import json
import math
import shutil

import pytest
import torch
from tiny import make_checkpoint, make_data, rows

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.invariance import LAYOUTS, attach_moving_lora, check_layouts, measure
from lit_llm.checkpoint.load_model import load_model
from lit_llm.data.batches import collate
from lit_llm.data.examples import tokenize_all
from lit_llm.text.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=["llama", "gpt_neox"])
def long_checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / request.param
    return make_checkpoint(folder, request.param, max_position_embeddings=2048)


def real_rows(shared_data, name):
    if name == "rasbt_instruction_1100":
        return json.loads((shared_data / name / "instruction-data.json").read_text())[:40]
    lines = (shared_data / name / "train.jsonl").read_text().splitlines()[:16]
    return [{"instruction": row["question"], "output": row["answer"]} for row in map(json.loads, lines)]


@pytest.mark.parametrize("name", ["rasbt_instruction_1100", "gsm8k"])
def test_packing_keeps_loss_and_gradient_on_real_rows(long_checkpoint, shared_data, name):
    model = load_model(long_checkpoint)
    attach_moving_lora(model)
    examples, _ = tokenize_all(real_rows(shared_data, name), "alpaca", Tokenizer(long_checkpoint), True, 2048)
    assert len({len(example) for example in examples}) > 10
    found = check_layouts(model, examples)
    assert {row["micro_batches"] for row in found} != {found[0]["micro_batches"]}
    assert [(row["micro_batch_size"], row["packing"], row["processes"]) for row in found] == list(LAYOUTS)
    for row in found:
        assert row["loss_difference"] < 1e-5
        assert row["gradient_difference"] < 1e-5


def test_a_document_cannot_see_its_neighbours(long_checkpoint):
    """Other tokens in the first document leave every number of the others as it was, to the last bit."""
    model = load_model(long_checkpoint)
    torch.manual_seed(0)
    lengths = (7, 30, 12)
    ids = torch.randint(320, (1, sum(lengths)))
    changed = ids.clone()
    changed[0, :7] = (changed[0, :7] + 1) % 320
    before, after = model(ids, lengths), model(changed, lengths)
    assert not torch.equal(before[0, :7], after[0, :7])
    assert torch.equal(before[0, 7:], after[0, 7:])
    for part, document in zip(before[0].split(lengths), ids[0].split(lengths), strict=True):
        torch.testing.assert_close(part, model(document[None])[0], rtol=1e-5, atol=1e-5)


def test_no_gradient_flows_into_a_neighbour(long_checkpoint):
    model = load_model(long_checkpoint)
    model.wte.weight.requires_grad_()
    ids = torch.arange(40)[None]
    model(ids, (15, 25))[0, 15:].sum().backward()
    touched = model.wte.weight.grad.abs().sum(-1) > 0
    if not model.config.tie_embeddings:
        assert not touched[:15].any()
        assert touched[15:40].all()


def test_packed_documents_do_not_predict_each_other(checkpoint):
    """The last token of a document has no label: what follows it is another document."""
    examples, _ = tokenize_all(rows(3), "alpaca", Tokenizer(checkpoint), False, 256)
    batch = collate(examples)
    ends = torch.tensor(batch.lengths).cumsum(0) - 1
    assert not set(batch.positions.tolist()) & set(ends.tolist())


def test_the_invariance_check_answers_on_the_users_own_data(tmp_path, checkpoint, script):
    data_dir = make_data(tmp_path / "data")
    options = (f"--checkpoint_dir={checkpoint}", f"--data_dir={data_dir}", "--n_examples=6")
    found = json.loads(script("eval/benchmark.py", "--check=invariance", *options).stdout)
    assert found["equal"] is True
    assert found["style"] == "alpaca"
    assert len(found["layouts"]) == len(LAYOUTS)


def test_pairs_and_chats_are_checked_too(tmp_path, checkpoint, capsys):
    """Pairs by the loss of DPO, conversations in the template of the checkpoint."""
    chat = shutil.copytree(checkpoint, tmp_path / "chat")
    config = json.loads((chat / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    (chat / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    pairs = [
        {"prompt": a["instruction"], "chosen": a["output"], "rejected": b["output"]}
        for a, b in zip(rows(7, seed=1), rows(7, seed=2), strict=True)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    measure(BenchmarkArgs("invariance", checkpoint_dir=chat, data_dir=tmp_path, n_examples=7))
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] is True
    assert found["style"] == "chat_template"
    assert found["layouts"][0]["loss"] != pytest.approx(math.log(2), rel=1e-3)  # the adapter is away from the base
