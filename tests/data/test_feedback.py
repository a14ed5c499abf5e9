"""Unpaired feedback and questions with a reference: prepared without loss, checked and shown; no script trains on them."""

import json

import pytest

from lit_llm.data.examples import tokenize
from lit_llm.data.records import check_record
from lit_llm.data.rows import COLUMNS, to_record
from lit_llm.text.tokenizer import Tokenizer

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}
ROWS = {
    "feedback": ({"prompt": "a", "completion": "b", "label": False}, None),
    "feedback in turns": (
        {"prompt": [USER], "completion": [ANSWER], "label": True},
        {"prompt": [USER], "completion": "b", "label": True},
    ),
    "reference": ({"prompt": "a", "answer": "4"}, None),
    "reference and system": ({"prompt": "a", "answer": "4", "system": "s"}, {"prompt": [SYSTEM, USER], "answer": "4"}),
    "completion": ({"prompt": "a", "completion": "b"}, {"instruction": "a", "input": "", "output": "b"}),
    "completion in turns": ({"prompt": [USER], "completion": ANSWER}, {"messages": [USER, ANSWER]}),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_becomes_a_record_that_is_its_own(kind):
    row, expected = ROWS[kind]
    record = to_record(row, COLUMNS)
    assert record == (expected or row)
    assert to_record(record, COLUMNS) == record
    check_record(record)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completion": "b", "label": "good"}, "'label' must be true or false, found \"good\""),
        ({"prompt": "a", "completion": "b", "label": 1}, "'label' must be true or false, found 1"),
        ({"prompt": "a", "completion": " ", "label": True}, "'completion' is empty"),
        ({"prompt": "a", "answer": 4}, "'answer' must be a string, found 4"),
        ({"prompt": [ANSWER], "answer": "4"}, "out of order"),
        ({"prompt": "a", "completion": [USER, ANSWER], "label": True}, "'completion' must be a string or a turn"),
    ],
)
def test_an_incomplete_row_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        to_record(row, COLUMNS)


@pytest.mark.parametrize("kind", ["feedback", "reference"])
def test_training_on_them_is_refused_by_name(checkpoint, kind):
    with pytest.raises(ValueError, match="No script trains on it yet"):
        tokenize(ROWS[kind][0], "alpaca", Tokenizer(checkpoint), True)


def test_they_are_prepared_shown_and_refused(tmp_path, script, checkpoint):
    rows = [{"prompt": f"the {i}", "completion": f"cat {i}", "label": i % 3 == 0} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--destination_path=data", "--val_split_fraction=0", f"--checkpoint_dir={checkpoint}"]
    done = script("scripts/prepare_json.py", "--json_path=rows.jsonl", *flags)
    assert "tokens are not counted" in done.stdout
    assert sorted(json.loads(line)["prompt"] for line in (tmp_path / "data/train.jsonl").open()) == [r["prompt"] for r in rows]
    assert [row for line in (tmp_path / "data/train.jsonl").open() if (row := json.loads(line)) not in rows] == []
    shown = script("scripts/inspect_data.py", f"--checkpoint_dir={checkpoint}", "--data_dir=data", "--num_examples=1").stdout
    assert "--- completion: cat" in shown
    assert "examples        9; label true 3, false 6; no script trains on them yet" in shown
    refused = script("finetune/lora.py", f"--checkpoint_dir={checkpoint}", "--data_dir=data", check=False)
    assert refused.returncode == 2
    assert "train.jsonl: record 1: the record has prompt, completion, label: unpaired feedback, as KTO" in refused.stderr
