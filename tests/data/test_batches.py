import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import rows

from lit_llm.args.finetune import TrainArgs
from lit_llm.data.batches import StepPlan, collate, pack
from lit_llm.data.examples import tokenize, tokenize_all
from lit_llm.data.rows import read_records
from lit_llm.text.conversation import prompt_ids, question
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.training.schedule import Schedule


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return Tokenizer(checkpoint)


def test_prompt_is_masked_and_answer_with_eos_is_trained(tokenizer):
    record = {"instruction": "the red cat", "input": "", "output": "sees a dog"}
    example = tokenize(record, "alpaca", tokenizer, mask_prompt=True)
    prompt = prompt_ids("alpaca", tokenizer, question("the red cat"))
    assert example.ids.tolist() == [*prompt, *tokenizer.encode("sees a dog", bos=False), tokenizer.eos_id]
    assert example.trained.tolist() == [False] * len(prompt) + [True] * (len(example) - len(prompt))
    assert example.ids.tolist().count(tokenizer.bos_id) == 1


def test_pairs_render_input_and_system_as_rows_do(tokenizer):
    about = {"input": "a dog", "system": "sees"}
    row = tokenize({"instruction": "the cat", "output": "likes", **about}, "alpaca", tokenizer, True)
    pair = tokenize({"prompt": "the cat", "chosen": "likes", "rejected": "eats", **about}, "alpaca", tokenizer, True)
    assert pair.chosen.ids.tolist() == row.ids.tolist()
    assert pair.rejected.ids.tolist() != row.ids.tolist()


def test_unmasked_prompt_is_trained(tokenizer):
    record = {"instruction": "the red cat", "output": "sees a dog"}
    assert tokenize(record, "alpaca", tokenizer, mask_prompt=False).trained.all()


def test_text_trains_on_everything_behind_bos(tokenizer):
    example = tokenize({"text": "a blue bird"}, "alpaca", tokenizer, mask_prompt=True)
    assert example.trained.tolist() == [False] + [True] * (len(example) - 1)
    assert example.ids[-1] == tokenizer.eos_id


def test_over_long_examples_are_dropped_whole_and_counted(tokenizer):
    records = rows(30)
    lengths = [len(tokenize(r, "alpaca", tokenizer, True)) for r in records]
    limit = sorted(lengths)[20]
    examples, n_dropped = tokenize_all(records, "alpaca", tokenizer, True, limit)
    assert [len(e) for e in examples] == [n for n in lengths if n <= limit]
    assert n_dropped == sum(n > limit for n in lengths) > 0
    assert all(e.ids[-1] == tokenizer.eos_id for e in examples)


def test_labels_are_shifted_once(tokenizer):
    examples, _ = tokenize_all(rows(5), "alpaca", tokenizer, True, 256)
    batch = collate(examples)
    flat = torch.cat([e.ids for e in examples])
    trained = torch.cat([e.trained for e in examples])
    assert torch.equal(batch.targets, flat[batch.positions + 1].long())
    assert trained[batch.positions + 1].all()
    assert len(batch.targets) == sum(e.n_targets for e in examples) == trained.sum()


def test_no_label_crosses_a_document():
    """A document whose first token is marked as trained: nothing precedes it, so it is not predicted."""
    from lit_llm.data.examples import Example

    whole = Example(torch.tensor([5, 6, 7], dtype=torch.int32), torch.ones(3, dtype=torch.bool))
    batch = collate([whole, whole])
    assert batch.positions.tolist() == [0, 1, 3, 4]
    assert batch.targets.tolist() == [6, 7, 6, 7]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    global_batch_size=st.integers(1, 20),
    micro_batch_size=st.integers(1, 8),
    packing=st.booleans(),
    seed=st.integers(0, 3),
)
def test_every_example_is_trained_once_per_epoch(lengths, global_batch_size, micro_batch_size, packing, seed):
    plan = StepPlan(lengths, global_batch_size, micro_batch_size, max(lengths), packing, seed)
    assert plan.steps_per_epoch == math.ceil(len(lengths) / global_batch_size)
    for epoch in range(2):
        seen = []
        for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
            groups = plan.pack(plan.examples(step))
            seen += [i for group in groups for i in group]
            for group in groups:
                if packing:
                    assert sum(lengths[i] for i in group) <= micro_batch_size * max(lengths)
                else:
                    assert len(group) <= micro_batch_size
        assert sorted(seen) == list(range(len(lengths)))


def test_epochs_differ_in_order_and_repeat_with_the_seed():
    plan = StepPlan([1] * 40, 10, 2, 1, True, seed=0)
    first, second = ([plan.examples(s) for s in range(4 * e, 4 * e + 4)] for e in (0, 1))
    assert first != second
    assert first == [StepPlan([1] * 40, 10, 2, 1, True, seed=0).examples(s) for s in range(4)]
    assert first != [StepPlan([1] * 40, 10, 2, 1, True, seed=1).examples(s) for s in range(4)]


def test_packing_uses_fewer_micro_batches():
    lengths = [100] + [10] * 31
    assert len(pack(range(32), lengths, 4, 100, packing=True)) == 2
    assert len(pack(range(32), lengths, 4, 100, packing=False)) == 8


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"instruction": "a"}', "has no 'output'"),
        ('{"instruction": "a", "output": ""}', "'output' is empty"),
        ('{"instruction": "a", "output": null}', "'output' must be a string"),
        ('{"instruction": "a", "output": 3}', "'output' must be a string"),
        (
            '{"prompt": [{"role": "user", "content": "a"}], "input": "i", "chosen": "b", "rejected": "c"}',
            "'input' or 'history' is ignored when the prompt holds turns",
        ),
        ('{"instruction": "a", "output": "b", "history": ["c", "d"]}', "'history' must be a list"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}',
            "every answer has weight 0",
        ),
        ('["a"]', "must be a JSON object"),
        ('{"instruction": "a",', "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        pytest.param('{"a": ' + "[" * 5000, "nested too deeply", id="deep"),
    ],
)
def test_a_bad_row_is_told_with_file_and_line(tmp_path, line, message):
    path = tmp_path / "train.jsonl"
    good = json.dumps({"instruction": "a", "output": "b"}).encode()
    path.write_bytes(good + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(ValueError, match=message) as error:
        read_records(path)
    assert f"{path}:2:" in str(error.value)


def test_default_warmup_is_a_tenth_of_a_run_limited_by_time():
    args = TrainArgs(max_time=1.0, learning_rate=1.0)
    slow, fast = (
        [Schedule.from_args(args, 10).at(step, step * seconds) for step in range(int(3600 / seconds))] for seconds in (60, 1)
    )
    assert 0 < slow[0] < slow[3] < slow[5] < 1
    assert slow[6] == max(slow) == pytest.approx(1, abs=0.03)
    assert slow[6:] == sorted(slow[6:], reverse=True)
    assert fast[99] < fast[100] == max(fast) == pytest.approx(1, abs=0.03)
    asked_for = Schedule.from_args(TrainArgs(max_time=1.0, learning_rate=1.0, lr_warmup_steps=50), 10)
    assert asked_for.at(24, 3000.0) == 25 / 51


def test_learning_rate_starts_above_zero_and_ends_at_the_minimum():
    schedule = Schedule(1.0, 0.1, 5, 50, math.inf)
    rates = [schedule.at(step, 0) for step in range(50)]
    assert 0 < rates[0] < rates[4] < rates[5] == 1.0
    assert rates[49] == pytest.approx(0.1)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    middle = 5 + (49 - 5) // 2
    assert rates[middle] == pytest.approx(0.55)
    assert Schedule(1.0, 0.1, 0, 1, math.inf).at(0, 0) == 1.0
