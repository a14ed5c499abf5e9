"""Contamination: rows that share words with an evaluation are dropped, and only these, by a comparison of all runs of words."""

import json
import random
import string

import pytest

from lit_llm.args.data import PrepareJsonArgs
from lit_llm.data.contamination import Overlap
from lit_llm.data.prepare import prepare_table
from lit_llm.errors import DataError


def sentence(draw, n):
    return " ".join("".join(draw.choices(string.ascii_lowercase, k=5)) for _ in range(n))


def share_words(a, b, n):
    """Whether two texts have n words in a row in common, found without an index."""
    a, b = ("".join(c if c.isalnum() else " " for c in text.lower()).split() for text in (a, b))
    return any(f" {' '.join(a[i : i + n])} " in f" {' '.join(b)} " for i in range(len(a) - n + 1))


@pytest.mark.parametrize(("shortest", "n"), [(30, 13), (10, 10), (8, 8)])
def test_the_index_agrees_with_a_comparison_of_all_texts(shortest, n):
    draw = random.Random(0)
    evaluation = [sentence(draw, draw.randint(shortest, 40)) for _ in range(40)]
    evaluation[:4] = [sentence(draw, shortest) for _ in range(4)]
    overlap = Overlap([*evaluation, "too short"])
    assert (overlap.n_words, overlap.n_texts, overlap.n_short) == (n, 40, 1)
    found = []
    for i in range(200):
        copied = draw.choice(evaluation).split()
        at = draw.randrange(len(copied))
        words = copied[at : at + draw.randint(1, 20)]
        text = f"{sentence(draw, i % 7)} {', '.join(words).upper()}! {sentence(draw, 5)}"
        found.append(overlap.has(text))
        assert found[-1] == any(share_words(text, other, n) for other in evaluation)
    assert 20 < sum(found) < 180


def test_the_wording_of_prompts_does_not_count():
    draw = random.Random(0)
    ask = "answer the following question and choose one of the four given letters as your answer"
    many = Overlap(f"{ask}: {sentence(draw, 20)}" for _ in range(11))
    few = Overlap(f"{ask}: {sentence(draw, 20)}" for _ in range(10))
    assert not many.has(ask)
    assert few.has(ask)


QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
SYSTEM = "You are a careful assistant who answers every question of the user in exactly one short sentence."


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"instruction": QUESTION.upper(), "output": "72"},
        {"instruction": "tell", "output": f"Once, {QUESTION}"},
        {"instruction": "half of it", "output": QUESTION[:40]},
        {"messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "a"},
                      {"role": "assistant", "content": "b"}]},
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(evaluation, content):
        if content is not None:
            (tmp_path / evaluation).write_text(content if isinstance(content, str) else json.dumps(content))
        options = {"val_split_fraction": 0, "write_dropped": True, "destination_path": "out", "contamination": evaluation}
        prepare_table(PrepareJsonArgs(json_path="rows.jsonl", **options))
        told = capsys.readouterr()
        return json.loads((tmp_path / "out/meta.json").read_text()), told.out + told.err, tmp_path / "out"

    return run


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", [{"question": QUESTION, "choices": ["a", "b"]}]),
        ("a.jsonl", {"messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]}),
        ("a.csv", f'system,text\n"{SYSTEM}","{QUESTION}"\n'),
        ("a.txt", f"first\n{QUESTION}\n"),
    ],
)
def test_contaminated_rows_are_dropped_and_kept_for_a_look(run, name, content):
    meta, told, folder = run(name, content)
    assert meta["dropped"] == {"shares 13 words in a row with the evaluation": 2}
    dropped = [json.loads(line)["row"] for line in (folder / "dropped.jsonl").read_text().splitlines()]
    assert [row["instruction"] for row in dropped] == [QUESTION.upper(), "tell"]
    assert f"contamination: 1 texts of {name} are compared, 13 words at a time" in told


def test_another_evaluation_prepares_the_folder_again(run):
    run("a.txt", QUESTION)
    assert "up to date" in run("a.txt", QUESTION)[1]
    meta, told, _ = run("a.txt", SYSTEM)
    assert "up to date" not in told
    assert sum(meta["dropped"].values()) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "too short\n", "`contamination` a.txt: no text has 8 words or more"),
        ("a.json", "[1", "a.json:1:3: not JSON"),
        ("absent.json", None, "absent.json does not exist"),
    ],
)
def test_an_evaluation_that_cannot_be_compared_is_refused(run, name, content, message):
    with pytest.raises((DataError, FileNotFoundError)) as refused:
        run(name, content)
    assert message in str(refused.value)


def test_the_rejected_answer_of_a_pair_counts(run, tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": "q", "chosen": "a", "rejected": text}) + "\n" for text in (QUESTION, "b"))
    )
    assert sum(run("a.txt", QUESTION)[0]["dropped"].values()) == 1
