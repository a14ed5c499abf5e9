"""Multiple choice in the evaluation harness, by our model and by the harness's own `hf` model: same weights, batch size and
questions, one thread, CPU-seconds."""

import json
import logging
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.train_speed import SHAPES, machine, make_checkpoint
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


def measure(args: BenchmarkArgs) -> None:
    """Print results as JSON, and a Markdown table. Raises ValueError if log-likelihoods differ."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    results = {}
    for shape in args.shapes:
        results[shape] = compare_speed(SHAPES[shape], args.repetitions, args.n_examples)
        print(as_markdown({shape: results[shape]}), file=sys.stderr)
    print(json.dumps({**machine(), "batch_size": BATCH_SIZE, "questions": args.n_examples, "results": results}, indent=2))
    worst = max(row["difference"] for result in results.values() for row in result.values())
    if worst > TOLERANCE:
        raise ValueError(f"a log-likelihood differs from that of the harness's own model by {worst:.1e}")


def compare_speed(shape: dict[str, Any], repetitions: int, n_questions: int) -> dict[str, dict[str, Any]]:
    """For each task the CPU-seconds of both, the ratio, and the largest difference of a log-likelihood."""
    import datasets
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    from lit_llm.evaluation.harness import HarnessModel

    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        datasets.config.HF_DATASETS_CACHE = folder / "cache"  # type: ignore[assignment]
        make_checkpoint(folder / "model", shape)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(DEMO / "checkpoint" / file, folder / "model")
        write_tasks(folder, n_questions)
        loading: Any = {"pretrained": str(folder / "model"), "batch_size": BATCH_SIZE, "device": "cpu", "dtype": "float32"}
        theirs = HFLM(**loading, tokenizer=AutoTokenizer.from_pretrained(folder / "model"))  # type: ignore[call-arg]
        ours = HarnessModel(*load(folder / "model", device="cpu"), folder, BATCH_SIZE)
        manager = TaskManager(include_path=folder, include_defaults=False)
        for task in TASKS:
            seconds: dict[str, list[float]] = {"lit_llm": [], "hf": []}
            found = {}
            for repetition in range(repetitions + 1):  # the first one warms up
                for contender, model in (("lit_llm", ours), ("hf", theirs)):
                    start = time.process_time()
                    done: Any = simple_evaluate(
                        model=model, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True,
                        limit=None if repetition else 1,
                    )  # fmt: skip
                    if repetition:
                        seconds[contender].append(time.process_time() - start)
                        found[contender] = [r[0] for s in done["samples"][task] for r in s["filtered_resps"]]
            ratios = [hf / lit for lit, hf in zip(*seconds.values(), strict=True)]
            results[task] = {
                **{f"{name}_seconds": median(values) for name, values in seconds.items()},
                "ratio": median(ratios), "spread": [min(ratios), max(ratios)],
                "difference": max(abs(a - b) for a, b in zip(*found.values(), strict=True)),
            }  # fmt: skip
    return results


def write_tasks(folder: Path, n_questions: int) -> None:
    """Questions with four answers, of which the demo's data says one, as tasks of the harness."""
    draw, rows = random.Random(0), []
    known = [json.loads(line) for line in (DEMO / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in draw.sample(known, n_questions + 5):
        choices = [row["output"], *(other["output"] for other in draw.sample(known, 3))]
        draw.shuffle(choices)
        lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True)]
        answer = choices.index(row["output"])
        rows.append(
            {"asked": row["instruction"], "question": "\n".join([row["instruction"], *lines]), "choices": choices,
             "answer": answer}
        )  # fmt: skip
    files = {}
    for split, part in (("shots", rows[:5]), ("test", rows[5:])):
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("".join(f"{json.dumps(row)}\n" for row in part), encoding="utf-8")
    for task, about in TASKS.items():
        whole = {
            "task": task, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test",
            "fewshot_split": "shots", "output_type": "multiple_choice", "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}], **about,
        }  # fmt: skip
        (folder / f"{task}.yaml").write_text(json.dumps(whole), encoding="utf-8")


def as_markdown(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = ["| shape | task | lit_llm | hf | hf takes | largest difference |", "|---|---|---|---|---|---|"]
    for shape, tasks in results.items():
        for task, r in tasks.items():
            low, high = r["spread"]
            lines.append(
                f"| {shape} | {task} | {r['lit_llm_seconds']:.1f} s | {r['hf_seconds']:.1f} s | "
                f"{r['ratio']:.1f}x ({low:.1f} to {high:.1f}) | {r['difference']:.0e} |"
            )
    return "\n".join(lines)
