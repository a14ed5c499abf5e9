import json

import pytest
import torch
from methods import randomize
from tiny import WORDS, make_checkpoint

from lit_llm.checkpoint.load_model import load_model
from lit_llm.data.batches import collate
from lit_llm.data.examples import tokenize
from lit_llm.methods.dpo import DPO
from lit_llm.text.tokenizer import Tokenizer


def pairs(n):
    return [
        {"prompt": f"the {WORDS[i % 9]} cat", "chosen": "sees " * (i + 1) + "a dog", "rejected": f"eats {WORDS[i % 5]}"}
        for i in range(n)
    ]


def log_prob(model, document):
    """Sum of log-probabilities of the labels under a transformers model, one document at a time."""
    ids = document.ids.long()
    log_probs = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return log_probs[document.trained[1:]].sum()


@torch.no_grad()
def test_loss_equals_a_hand_computation_with_transformers(checkpoint, tmp_path):
    """The policy is a second transformers model that holds the merged weights."""
    from transformers import AutoModelForCausalLM

    from lit_llm.checkpoint.tensor_names import to_hf
    from lit_llm.methods.lora import merge

    reference = AutoModelForCausalLM.from_pretrained(checkpoint)
    policy = AutoModelForCausalLM.from_pretrained(checkpoint)
    model, merged = load_model(checkpoint), load_model(checkpoint)
    method = DPO(0.3, dropout=0.0)
    for ours in (model, merged):
        torch.manual_seed(1)
        method.attach(ours)
        randomize(ours, 0.2)
    merge(merged)
    policy.load_state_dict(dict(to_hf(merged.config, {n: (lambda t=t: t) for n, t in merged.state_dict().items()})))

    tokenizer = Tokenizer(checkpoint)
    examples = [tokenize(pair, "plain", tokenizer, True) for pair in pairs(3)]
    expected, margins = 0.0, []
    for example in examples:
        rewards = [log_prob(policy, d) - log_prob(reference, d) for d in example.documents]
        margins.append(0.3 * (rewards[0] - rewards[1]))
        expected -= torch.nn.functional.logsigmoid(margins[-1])
    total, shown = method.loss(model, collate(examples))
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shown["reward_margin"], sum(margins), rtol=1e-4, atol=1e-5)
    assert shown["reward_accuracy"] == sum(m > 0 for m in margins)


def test_dpo_learns_the_preference_and_logs_it(tmp_path, script):
    base = make_checkpoint(tmp_path / "base")
    (tmp_path / "pairs").mkdir()
    for name in ("train", "val"):
        (tmp_path / "pairs" / f"{name}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs(12)))
    done = script(
        "finetune/dpo.py", "--checkpoint_dir", base, "--data_dir", tmp_path / "pairs", "--out_dir", tmp_path / "run",
        "--train.epochs=4", "--train.global_batch_size=4", "--train.learning_rate=0.01", "--eval.samples=1",
    )  # fmt: skip
    header, *lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    last = dict(zip(header.split(","), lines[-1].split(","), strict=True))
    assert float(last["reward_accuracy"]) == 1
    assert float(last["reward_margin"]) > 0.5
    assert float(last["val_loss"]) < 0.5 < 0.693 == pytest.approx(float(lines[0].split(",")[3]), abs=1e-3)
    assert "generate/lora.py" in done.stdout
    script("generate/lora.py", "--adapter_dir", tmp_path / "run" / "final", "--prompt=the red cat", "--max_new_tokens=3")


@pytest.mark.parametrize(("path", "record", "message"), [
    ("finetune/dpo.py", {"instruction": "a", "output": "b"}, "DPO needs preference pairs"),
    ("finetune/lora.py", {"prompt": "a", "chosen": "b", "rejected": "c"}, "Train on them with finetune/dpo.py"),
    ("finetune/dpo.py", {"prompt": "a", "chosen": "b"}, "the record has no 'rejected'"),
])  # fmt: skip
def test_the_wrong_kind_of_data_is_refused(tmp_path, checkpoint, script, path, record, message):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps(record) + "\n")
    done = script(path, "--checkpoint_dir", checkpoint, "--data_dir", tmp_path / "data", check=False)
    assert done.returncode == 2
    assert message in done.stderr
