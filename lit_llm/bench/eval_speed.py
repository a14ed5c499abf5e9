"""Multiple choice in the evaluation harness with our model and with the harness's own `hf` model.

Both have the same weights, batch size and questions. One thread, CPU-seconds.
"""

import json
import logging
import random
import shutil
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.measuring import cpu_seconds, in_turn, machine, ratios, report, summary, table
from lit_llm.bench.shapes import SHAPES, Shape, random_checkpoint
from lit_llm.checkpoint.load import load
from lit_llm.cli import DEMO

BATCH_SIZE = 8
TOLERANCE = 1e-4  # of log-likelihoods, in nats
_LETTERS = {"doc_to_text": "{{question}}\nAnswer:", "doc_to_choice": ["A", "B", "C", "D"], "num_fewshot": 5}
TASKS: dict[str, dict[str, Any]] = {
    "five_shots": {**_LETTERS, "fewshot_config": {"sampler": "first_n"}},  # the same for every question, as in MMLU
    "five_random_shots": _LETTERS,
    "long_answers": {"doc_to_text": "{{asked}}", "doc_to_choice": "choices"},
}
COLUMNS = {
    "shape": "{shape}", "task": "{task}", "lit_llm": "{lit_llm_seconds:.1f} s", "hf": "{hf_seconds:.1f} s",
    "hf takes": "{ratio:.1f}x ({spread[0]:.1f} to {spread[1]:.1f})", "largest difference": "{difference:.0e}",
}  # fmt: skip


def measure(args: BenchmarkArgs) -> None:
    """Print the results. Raises ValueError if log-likelihoods differ."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    results = {}
    for shape in args.shapes:
        results[shape] = compare_speed(SHAPES[shape], args.repetitions, args.n_examples)
        print(as_markdown({shape: results[shape]}), file=sys.stderr)
    report({**machine(), "batch_size": BATCH_SIZE, "questions": args.n_examples, "results": results})
    worst = max(row["difference"] for result in results.values() for row in result.values())
    if worst > TOLERANCE:
        raise ValueError(f"a log-likelihood differs from that of the harness's own model by {worst:.1e}")


def compare_speed(shape: Shape, repetitions: int, n_questions: int) -> dict[str, dict[str, Any]]:
    """Return for each task the CPU-seconds of both models, their ratio, and the largest difference of a log-likelihood."""
    import datasets
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    from lit_llm.evaluation.harness import HarnessModel

    with random_checkpoint(shape) as folder:
        datasets.config.HF_DATASETS_CACHE = folder / "cache"  # type: ignore[assignment]
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(DEMO / "checkpoint" / file, folder)
        write_tasks(folder / "tasks", n_questions)
        loading: Any = {"pretrained": str(folder), "batch_size": BATCH_SIZE, "device": "cpu", "dtype": "float32"}
        models = {
            "lit_llm": HarnessModel(*load(folder, device="cpu"), folder, BATCH_SIZE),
            "hf": HFLM(**loading, tokenizer=AutoTokenizer.from_pretrained(folder)),  # type: ignore[call-arg]
        }
        manager = TaskManager(include_path=folder / "tasks", include_defaults=False)
        found: dict[str, list[float]] = {}

        def evaluate(name: str, task: str, limit: int | None = None) -> None:
            how: Any = {"task_manager": manager, "bootstrap_iters": 0, "log_samples": True, "limit": limit}
            done: Any = simple_evaluate(model=models[name], tasks=[task], **how)
            found[name] = [r[0] for s in done["samples"][task] for r in s["filtered_resps"]]

        results = {}
        for task in TASKS:
            for name in models:
                evaluate(name, task, limit=1)  # warms up
            seconds = in_turn({name: partial(cpu_seconds, evaluate, name, task) for name in models}, repetitions)
            results[task] = {
                **{f"{name}_seconds": median(values) for name, values in seconds.items()},
                **summary("ratio", ratios(seconds["hf"], seconds["lit_llm"])),
                "difference": max(abs(a - b) for a, b in zip(*found.values(), strict=True)),
            }
    return results


def write_tasks(folder: Path, n_questions: int) -> None:
    """Write tasks of the harness: questions of the demo's data, each with its answer and three others."""
    draw, rows = random.Random(0), []
    known = [json.loads(line) for line in (DEMO / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in draw.sample(known, n_questions + 5):
        choices = [row["output"], *(other["output"] for other in draw.sample(known, 3))]
        draw.shuffle(choices)
        lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True)]
        question = "\n".join([row["instruction"], *lines])
        answer = choices.index(row["output"])
        rows.append({"asked": row["instruction"], "question": question, "choices": choices, "answer": answer})
    folder.mkdir()
    files = {}
    for split, part in (("shots", rows[:5]), ("test", rows[5:])):
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("".join(f"{json.dumps(row)}\n" for row in part), encoding="utf-8")
    common = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test", "fewshot_split": "shots",
        "output_type": "multiple_choice", "doc_to_target": "answer", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    for task, about in TASKS.items():
        (folder / f"{task}.yaml").write_text(json.dumps({"task": task, **common, **about}), encoding="utf-8")


def as_markdown(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    rows = ({"shape": shape, "task": task, **found} for shape, tasks in results.items() for task, found in tasks.items())
    return table(COLUMNS, rows)
