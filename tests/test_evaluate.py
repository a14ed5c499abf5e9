"""Our numbers against those of lm-eval's own `hf` model on the same weights."""

import json

import pytest

pytest.importorskip("lm_eval")

from harness import FAMILIES, make_model, write_gsm8k, write_mmlu, write_truthfulqa

import lit_llm
from lit_llm.evaluate import HarnessModel


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        import datasets

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, tmp_path_factory, shared_data):
    folder, theirs = make_model(tmp_path_factory.mktemp("models") / request.param, request.param, shared_data)
    return folder, theirs


def run(model, tasks, folder, **options):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=folder, include_defaults=False)
    return simple_evaluate(model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0, log_samples=True, **options)


def ours(folder, batch_size=8):
    return HarnessModel(*lit_llm.load(folder), folder, batch_size)


def metrics(results):
    """Values of all tasks, without what says how they were made."""
    return {
        task: {name: value for name, value in row.items() if name.split(",")[0] in ("acc", "acc_norm", "exact_match")}
        for task, row in results["results"].items()
    }


def assert_equal(found, expected):
    assert metrics(found) == metrics(expected)
    assert any(metrics(expected).values())
    for task, rows in expected["samples"].items():
        for mine, other in zip(found["samples"][task], rows, strict=True):
            assert mine["doc_id"] == other["doc_id"]
            for (a,), (b,) in zip(mine["resps"], other["resps"], strict=True):
                if isinstance(b, str):
                    assert a == b
                else:
                    assert a[0] == pytest.approx(b[0], abs=1e-4)
                    assert a[1] == b[1]


def test_five_shot_mmlu_of_all_subjects_equals_the_harness_own_model(models, tmp_path, shared_data):
    folder, theirs = models
    tasks = write_mmlu(tmp_path, shared_data, 5 if "llama" in folder.name else 1)
    assert len(tasks) == 57
    assert_equal(run(ours(folder), tasks, tmp_path), run(theirs, tasks, tmp_path))


def test_answers_of_many_tokens_and_generated_ones_equal_the_harness_own_model(models, tmp_path, shared_data):
    folder, theirs = models
    tasks = [write_truthfulqa(tmp_path, shared_data, 25), write_gsm8k(tmp_path, shared_data, 6)]
    found, expected = run(ours(folder, 3), tasks, tmp_path), run(theirs, tasks, tmp_path)
    assert_equal(found, expected)
    assert len({len(c[0][0]) for c in (row["resps"] for row in expected["samples"]["our_gsm8k"])}) > 1
