"""The token cache, what inspect_data shows, and one command from a file to an adapter."""

import json
import re

import pytest
import torch
from templates import CHAT
from thought_templates import THOUGHT_CHATS, THOUGHT_TEMPLATES
from tiny import make_checkpoint, make_tokenizer, rows

from lit_llm.checkpoint.load_model import load_model
from lit_llm.data import token_cache
from lit_llm.data.examples import tokenize
from lit_llm.data.rows import read_records
from lit_llm.data.token_cache import examples_of
from lit_llm.methods.loss import next_token_loss
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.training.objective import Objective, noisy_embeddings


def equal(found, expected):
    documents = [[d for example in examples for d in example.documents] for examples in (found, expected)]
    return len(found) == len(expected) and all(
        torch.equal(a.ids, b.ids) and torch.equal(a.trained, b.trained) for a, b in zip(*documents, strict=True)
    )


KINDS = {
    "rows": (rows(9), ["Example"]),
    "pairs": ([{"prompt": r["instruction"], "chosen": r["output"], "rejected": "no"} for r in rows(9)], ["Pair"]),
    "rewritten": ([{"messages": CHAT}, *rows(3), {"messages": CHAT}], ["Example", "Rewritten"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_hit_says_so_and_equals_what_was_tokenized(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setattr(token_cache, "CACHED_FROM", 0)
    make_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(THOUGHT_TEMPLATES["qwen3"])
    path = tmp_path / "train.jsonl"
    found, types = KINDS[kind]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    expected = [tokenize(record, "chat_template", Tokenizer(tmp_path), True) for record in read_records(path)]
    assert sorted({type(example).__name__ for example in expected}) == types
    for word in ("written to", "from"):
        cached = examples_of(path, "chat_template", Tokenizer(tmp_path))
        assert equal(cached, expected)
        assert list(map(type, cached)) == list(map(type, expected))
        assert f"tokens of {path}: {word} " in capsys.readouterr().err


def test_whatever_changes_the_tokens_is_a_miss(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(token_cache, "CACHED_FROM", 0)
    make_tokenizer(tmp_path)
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows(9), {"messages": CHAT}]))

    def hit(style="alpaca", **options):
        examples_of(path, style, Tokenizer(tmp_path), **options)
        return ": from " in capsys.readouterr().err

    assert not hit()
    assert not hit(style="plain")
    assert not hit(mask_prompt=False)
    assert not hit(train_on="last")
    assert hit()
    config = tmp_path / "tokenizer_config.json"
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    assert not hit(style="chat_template")
    assert hit(style="chat_template")
    (tmp_path / "chat_template.jinja").write_text(template.replace("|", "!"))
    assert not hit(style="chat_template")
    config.write_text(json.dumps({**json.loads(config.read_text()), "add_bos_token": False}))
    assert not hit()
    make_tokenizer(tmp_path, vocab_size=310)
    assert not hit()
    path.write_text(path.read_text() + json.dumps(rows(1, seed=4)[0]) + "\n")
    assert not hit()
    assert hit()


def test_small_data_is_not_cached(tmp_path):
    make_tokenizer(tmp_path)
    (tmp_path / "train.jsonl").write_text(json.dumps(rows(1)[0]))
    before = set(tmp_path.iterdir())
    examples_of(tmp_path / "train.jsonl", "alpaca", Tokenizer(tmp_path))
    assert set(tmp_path.iterdir()) == before


def test_a_record_that_cannot_be_rendered_is_told_by_number(tmp_path):
    make_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ raise_exception('no') if m.content == 'b' }}<{{ m.content }}>{% endfor %}"
    )
    good, bad = ({"instruction": name, "output": "c"} for name in "ab")
    (tmp_path / "train.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(bad))
    with pytest.raises(ValueError, match=r"train.jsonl: record 2: the checkpoint's chat template cannot render"):
        examples_of(tmp_path / "train.jsonl", "chat_template", Tokenizer(tmp_path))


def test_text_that_goes_on_has_no_eos(tmp_path):
    make_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    cut, last = (tokenize({"text": "a cat", **more}, "none", tokenizer, True) for more in ({"continues": True}, {}))
    assert last.ids.tolist() == [*cut.ids.tolist(), tokenizer.eos_id]


def test_inspect_data_shows_answers_and_the_preflight_summary(tmp_path, script, checkpoint):
    (tmp_path / "data").mkdir()
    records = [{"messages": CHAT}, {"instruction": "a", "input": "", "output": "b"}, {"messages": CHAT}]
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", "data", "--prompt_style=chatml"]
    shown = script("scripts/inspect_data.py", *flags).stdout
    first = shown.split("--- example 2")[0]
    assert re.findall("⟦(.*?)⟧", first, re.DOTALL) == ["sees a dog<|im_end|>", "likes it<|im_end|>"]
    assert first.count("<s>") == 1
    assert "3 of 3; 0 dropped, 1 repeated" in shown
    assert "3 and 0 in 3 documents; 3 closed otherwise by the template" in shown
    flags = [*flags[:-1], "--prompt_style=alpaca", "--train_on=last"]
    shown = script("scripts/inspect_data.py", *flags).stdout
    assert re.findall("⟦(.*?)⟧", shown.split("--- example 2")[0], re.DOTALL) == ["likes it</s>"]
    assert "3 and 3 in 3 documents\n" in shown
    told = script("finetune/lora.py", *flags, "--dry_run").stdout
    assert told.split("\n\n")[0] in shown
    (tmp_path / "rows.json").write_text(json.dumps([{"instruction": c, "output": "b"} for c in "xyz"]))
    of_file = script("scripts/inspect_data.py", "--checkpoint_dir", checkpoint, "--data_dir", "rows.json").stdout
    assert "; 0 dropped, 0 repeated" in of_file


def test_conversations_in_several_documents_are_reported(tmp_path, script):
    base = make_checkpoint(tmp_path / "base", max_position_embeddings=1024)
    (base / "chat_template.jinja").write_text(THOUGHT_TEMPLATES["qwen3"])
    records = [{"messages": THOUGHT_CHATS[name]} for name in ("two thoughts", "no thoughts", "thought")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    flags = ["--checkpoint_dir", base, "--data_dir", "rows.jsonl"]
    shown = script("scripts/inspect_data.py", *flags, "--num_examples=5").stdout
    assert "conversations   2 in 4 examples, as each answer is asked" in shown
    assert "--- example 5 of 5" in shown
    assert re.findall("⟦(.*?)⟧", shown, re.DOTALL)[0] == "<think>\nfour\n</think>\n\nIt is 4.<|im_end|>"
    done = script("finetune/lora.py", *flags, "--train_on=thoughts", "--train.max_steps=2", "--eval.samples=1")
    assert "training: 3 examples" in done.stderr
    assert "conversations   2 in 3 examples" in done.stderr
    assert "1 dropped, longer than 1024 tokens or with nothing to train on" in done.stderr


def test_one_command_from_a_csv_to_an_adapter(tmp_path, script):
    base = make_checkpoint(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    table = [f'"{row["instruction"]}","{row["output"]}"' for row in rows(40)]
    (tmp_path / "my.csv").write_text("\n".join(["instruction,output", *table]))
    flags = ["--checkpoint_dir", base, "--data_dir", "my.csv", "--train.neftune_alpha=5", "--train.max_steps=2"]
    done = script("finetune/lora.py", *flags)
    assert "held-out prompt" in done.stdout
    assert "out/lora/my/final" in done.stdout
    about = json.loads((tmp_path / "out/lora/my/final/adapter.json").read_text())
    assert about["prompt_style"] == "chat_template"
    script("generate/lora.py", "--adapter_dir", "out/lora/my/final", "--prompt=the cat", "--max_new_tokens=3")
    assert "up to date" in script("finetune/lora.py", *flags, "--out_dir=again").stdout


def test_neftune_noise_is_bounded_and_only_in_training(checkpoint):
    model = load_model(checkpoint)
    lengths, alpha, ids = (4, 16), 5.0, torch.arange(20)[None]
    clean = model.wte(ids)[0]
    with noisy_embeddings(model, lengths, alpha):
        noise = model.wte(ids)[0] - clean
    for part, n in zip(noise.split(lengths), lengths, strict=True):
        bound = alpha / (n * model.config.n_embd) ** 0.5
        assert 0.9 * bound < part.abs().max() <= bound * 1.00001
        assert part.std() == pytest.approx(bound / 3**0.5, rel=0.2)
    assert torch.equal(model.wte(ids)[0], clean)

    from lit_llm.data.batches import collate

    batch = collate([tokenize(rows(1)[0], "alpaca", Tokenizer(checkpoint), True)])
    objective = Objective(model, next_token_loss, alpha)
    plain = next_token_loss(model, batch)[0]
    assert torch.equal(objective.eval()(batch)[0], plain)
    assert not torch.equal(objective.train()(batch)[0], plain)


def test_plain_text_is_counted_without_a_style(tmp_path, checkpoint, script):
    (tmp_path / "book.txt").write_text("the red cat\n\n" * 60)
    done = script(
        "scripts/prepare_text.py", "--text_path=book.txt", "--destination_path=data", f"--checkpoint_dir={checkpoint}"
    )
    assert "trained (none)" in done.stdout
