"""A run from Python: its result, in any thread, and without repeated work."""

import threading
from collections import Counter

import pytest

from lit_llm.args.finetune import EvalArgs, LoRAFinetuneArgs, TrainArgs
from lit_llm.data import batches, rows
from lit_llm.model.gpt import GPT
from lit_llm.training.finetune import finetune
from lit_llm.training.preflight import COMPARED, Records
from lit_llm.training.run import Run


@pytest.fixture
def args(tmp_path, checkpoint, data_dir):
    """LoRA on 20 examples in steps of 4, two epochs, with the probe."""
    train = TrainArgs(epochs=2, global_batch_size=4, micro_batch_size=2)
    answers = EvalArgs(interval=5, samples=2, max_new_tokens=4, exact_match=2)
    return LoRAFinetuneArgs(
        checkpoint_dir=checkpoint, data_dir=data_dir, out_dir=tmp_path / "run", train=train, eval=answers, accelerator="cpu"
    )


def test_a_run_from_a_thread_returns_its_files_and_answers(args):
    """A notebook or a server may train in a thread, where signals have no handler."""
    found = []
    thread = threading.Thread(target=lambda: found.append(finetune(args)))
    thread.start()
    thread.join()
    (run,) = found
    assert isinstance(run, Run)
    assert (run.final / "adapter.safetensors").is_file()
    assert (run.best / "adapter.safetensors").is_file()
    assert run.metrics == args.out_dir / "metrics.csv" and run.metrics.is_file()
    assert len(run.prompts) == len(run.before) == len(run.after) == 2
    assert [line.split(":")[0] for line in run.outcome] == ["exact match on held-out prompts", "validation loss"]


def test_nothing_is_read_laid_out_or_built_twice(args, monkeypatch):
    counts = Counter()

    def counted(owner, name, key):
        original = getattr(owner, name)

        def call(*arguments, **options):
            counts[key] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    counted(rows, "check_record", "records")
    counted(batches, "pack", "layouts of a step")
    counted(GPT, "__init__", "models")
    finetune(args)
    assert counts == {"records": 20 + 4, "layouts of a step": 2 * 5, "models": 1}


def test_records_of_a_large_file_are_read_on_by_all_readers(tmp_path, monkeypatch):
    """The first ones are held; a reader that reads on after another has done so starts again."""
    monkeypatch.setattr("lit_llm.training.preflight.CACHED_FROM", 1)
    path = tmp_path / "train.jsonl"
    n = COMPARED + 5
    path.write_text("".join(f'{{"text": "{i}"}}\n' for i in range(n)))
    found = Records(path)
    assert next(iter(found)) == {"text": "0"}
    for _ in range(2):
        assert [record["text"] for record in found] == [str(i) for i in range(n)]
