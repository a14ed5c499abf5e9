import json
import re

import numpy as np
import pytest
import torch

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

from tiny import WORDS, make_checkpoint

import lit_llm
from lit_llm.args.evaluate import CompareArgs
from lit_llm.evaluation.compare import compare_models, paired_bootstrap
from lit_llm.generation.generate import generate
from lit_llm.text.conversation import prompt_ids
from lit_llm.text.ending import ending


def test_the_interval_equals_that_of_another_resampling():
    """Against a resampling in numpy with draws of its own; both have an error of about 1 % of the interval."""
    draw = np.random.default_rng(0)
    ours, base, n = draw.normal(1.0, 1.0, 200), draw.normal(0.5, 1.0, 200), draw.integers(1, 9, 200).astype(float)
    index = draw.integers(0, 200, (20_000, 200))
    expected = np.quantile(ours[index].sum(1) / n[index].sum(1) - base[index].sum(1) / n[index].sum(1), [0.025, 0.975])
    draws = torch.randint(200, (20_000, 200), generator=torch.Generator().manual_seed(1))
    tensors = [torch.from_numpy(x) for x in (ours, base, n)]
    with torch.no_grad():
        low, high = paired_bootstrap((tensors[0].float(), tensors[2].float()), (tensors[1].float(), tensors[2].float()), draws)
    assert [low, high] == pytest.approx(expected, abs=0.05 * (expected[1] - expected[0]))


def test_a_finetuned_model_is_held_against_its_base(script, checkpoint, data_dir, tmp_path):
    options = ["--checkpoint_dir", checkpoint, "--data_dir", data_dir, "--out_dir", tmp_path / "run", "--train.max_steps", 3]
    done = script("finetune/lora.py", *options, "--train.learning_rate", 0.01, "--eval.samples", 0)
    expected = re.search(r"validation loss: (\S+) -> (\S+)", done.stdout)
    models = f"[{checkpoint},{tmp_path / 'run' / 'final'},{checkpoint}]"
    table = script("eval/compare.py", "--models", models, "--data_dir", data_dir, "--max_new_tokens", 8).stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| /")]
    assert [row[0] for row in rows] == [str(checkpoint), str(tmp_path / "run" / "final"), str(checkpoint)]
    assert float(rows[0][4]) == pytest.approx(float(expected[1]), abs=1e-4)
    assert float(rows[1][4].split()[0]) == pytest.approx(float(expected[2]), abs=1e-4)
    assert rows[2][4] == f"{rows[0][4]} (+0.0000 to +0.0000)"
    done = script("eval/compare.py", "--models", f"[{checkpoint}]", "--data_dir", data_dir, check=False)
    assert done.returncode == 2


def compared(capsys, *models, **options):
    compare_models(CompareArgs(models=list(models), **options))
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


def data_of(folder, *records):
    folder.mkdir()
    (folder / "val.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("other") / "model", seed=5)


def test_compare_asks_last_answers_and_only_scores_texts(checkpoint, other, tmp_path, capsys):
    """Exactly the model's own greedy continuation is an exact match, whatever white space the style puts before it."""
    model, tokenizer = lit_llm.load(checkpoint)
    turns = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "a dog"}]
    turns.append({"role": "user", "content": "and the bird"})
    (made,) = generate(
        model, tokenizer, [prompt_ids("vicuna", tokenizer, turns)], max_new_tokens=8, temperature=0,
        ending=ending("vicuna", tokenizer),
    )  # fmt: skip
    chat = {"messages": [*turns, {"role": "assistant", "content": made.text.strip() or "-"}]}
    data = data_of(tmp_path / "chats", chat, {"text": "the red cat sees"})
    header, _, first, second = compared(capsys, checkpoint, other, data_dir=data, prompt_style="vicuna", max_new_tokens=8)
    assert header == ["model", "exact match", "ROUGE-L", "BLEU", "loss per token"]
    assert first[1] == ("100.0%" if made.ended else "0.0%")
    assert second[1].startswith("0.0%")
    texts = data_of(tmp_path / "texts", {"text": "the red cat sees a dog"})
    (header, _, row, _) = compared(capsys, checkpoint, other, data_dir=texts)
    assert header == ["model", "loss per token"]
    ids = torch.tensor([tokenizer.encode("the red cat sees a dog", eos=True)])
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
    assert float(row[1]) == pytest.approx(expected.item(), abs=1e-4)


def test_pairs_are_refused(checkpoint, tmp_path):
    data = data_of(tmp_path / "pairs", {"prompt": "a", "chosen": "b", "rejected": "c"})
    with pytest.raises(ValueError, match="preference pairs"):
        compare_models(CompareArgs(models=[checkpoint, checkpoint], data_dir=data))


def test_tasks_are_compared_question_by_question(checkpoint, other, tmp_path, capsys, monkeypatch):
    """The scores are those of the evaluation script."""
    pytest.importorskip("lm_eval")
    import datasets
    from harness import write_task

    from lit_llm.args.evaluate import HarnessArgs
    from lit_llm.evaluation.harness import evaluate

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    questions = [{"q": f"the {a} {b}", "a": ["red", "blue house", "cat"]} for a in WORDS[2:6] for b in WORDS[8:12]]
    write_task(
        tmp_path, "words", {"test": questions}, output_type="multiple_choice", doc_to_text="{{q}}", doc_to_choice="a",
        doc_to_target=0, metric_list=[{"metric": "acc"}],
    )  # fmt: skip
    how = {"tasks": ["words"], "include_path": tmp_path, "limit": 12}
    found = [evaluate(HarnessArgs(checkpoint_dir=folder, **how)) for folder in (checkpoint, other)]
    capsys.readouterr()
    header, _, row = compared(capsys, checkpoint, other, **how)
    assert header == ["task", "metric", "questions", str(checkpoint), str(other)]
    assert row[:3] == ["words", "acc", "12"]
    expected = [f"{results['results']['words']['acc,none']:.1%}" for results in found]
    assert [cell.split()[0] for cell in row[3:]] == expected
    assert expected[0] != expected[1]
