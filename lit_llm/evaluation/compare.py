"""Models against one another on the same rows and tasks: exact answers, ROUGE-L, BLEU, loss, scores, and how sure they are."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.args.evaluate import CompareArgs
from lit_llm.checkpoint.adapters import read_adapter, trained_style
from lit_llm.checkpoint.load import load
from lit_llm.data.examples import tokenize
from lit_llm.data.records import Record, answer_of, iter_records
from lit_llm.evaluation.score import Span, score
from lit_llm.generation.generate import generate_batch
from lit_llm.generation.sampling import Sampling
from lit_llm.model.device import resolve_device
from lit_llm.model.gpt import GPT
from lit_llm.text.conversation import default_style
from lit_llm.text.ending import ending, raw_ending
from lit_llm.text.tokenizer import Tokenizer

Ratios = tuple[Tensor, Tensor]
"""Numerator and denominator of each row, (rows,) each: a mean is the ratio of their sums."""


@dataclass(frozen=True)
class Result:
    """What one model made of each row; NaN in `losses` where a row does not fit into its context."""

    answers: list[str]
    ended: list[bool]
    losses: Tensor
    """(rows,) Nats of the reference answer with its EOS, or of the text."""
    tokens: Tensor
    """(rows,) Tokens of it."""


def compare(args: CompareArgs) -> None:
    """Print a markdown table for the data, and one for the tasks."""
    records = [] if args.data_dir is None else _records(args.data_dir / "val.jsonl", args.limit)
    tasks = None if args.tasks is None else _Tasks(args)
    styles = [trained_style(folder) for folder in args.models]
    default = args.prompt_style or next((s for s in styles if s), None)
    results = []
    for folder, style in zip(args.models, styles, strict=True):
        print(f"asking {folder}", file=sys.stderr)
        adapter = folder if (folder / "adapter.json").is_file() else None
        base = folder if adapter is None else Path(read_adapter(folder)["base_checkpoint_dir"])
        model, tokenizer = load(base, adapter, str(resolve_device(args.accelerator)), args.precision, args.quantize)
        if records:
            results.append(_ask(args, model, tokenizer, records, style or default or default_style(tokenizer, False)))
        if tasks is not None:
            tasks.run(model, tokenizer, base)
    print("In brackets: 95 % interval of the difference to the first model.")
    if records:
        print(_data_table(args, records, results))
    if tasks is not None:
        print(tasks.table())


def _records(path: Path, limit: int | None) -> list[Record]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Write it with a prepare script, e.g. scripts/prepare_json.py")
    records = list(islice(iter_records(path), limit))
    if any("chosen" in record for record in records):
        raise ValueError(f"{path} holds preference pairs, which have no one answer. Give rows, conversations or texts")
    return records


def _ask(args: CompareArgs, model: GPT, tokenizer: Tokenizer, records: Sequence[Record], style: str) -> Result:
    examples = [e for r in records for e in tokenize(r, style, tokenizer, True, "last").documents]  # a row is one document
    n_scored = [example.n_labels for example in examples]
    ids = [example.ids.tolist() for example in examples]
    room = [model.config.block_size - (0 if "text" in record else args.max_new_tokens) for record in records]
    fits = [i for i, n in enumerate(n_scored) if n and len(ids[i]) <= model.config.block_size and len(ids[i]) - n <= room[i]]
    losses, answers, ended = torch.full((len(records),), math.nan), [""] * len(records), [False] * len(records)
    spans = [Span(ids[i], n_scored[i]) for i in fits]
    for i, found in zip(fits, score(model, spans, args.batch_size, "losses"), strict=True):
        losses[i] = -math.fsum(found.log_probs)
    questions = [i for i in fits if "text" not in records[i]]
    until = ending(style, tokenizer) if questions else raw_ending(tokenizer)
    for start in range(0, len(questions), args.batch_size):
        batch = questions[start : start + args.batch_size]
        asked = [ids[i][: -n_scored[i]] for i in batch]
        made = generate_batch(model, tokenizer, asked, args.max_new_tokens, Sampling(temperature=0), until)
        for i, completion in zip(batch, made, strict=True):
            answers[i], ended[i] = completion.text.strip(), completion.ended
    return Result(answers, ended, losses, torch.tensor(n_scored).float())


def _data_table(args: CompareArgs, records: Sequence[Record], results: Sequence[Result]) -> str:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    assert args.data_dir is not None
    fits = torch.stack([r.losses.isfinite() for r in results]).all(dim=0)
    path = args.data_dir / "val.jsonl"
    if not fits.any():
        raise ValueError(f"no row of {path} fits into the context of all models. Lower --max_new_tokens")
    if n := int((~fits).sum()):
        print(f"{n} rows that do not fit into the context of all models are left out", file=sys.stderr)
    kept = [i for i in fits.nonzero()[:, 0].tolist() if "text" not in records[i]]
    references = [answer_of(records[i]).strip() for i in kept]
    rouge = RougeScorer(["rougeL"], use_stemmer=False)
    generator = torch.Generator().manual_seed(args.seed)
    lines = ["", f"{int(fits.sum())} rows of {path}.", "", "| model |", "|---|"]
    draws = {n: torch.randint(n, (args.n_resamples, n), generator=generator) for n in {len(kept), int(fits.sum())} if n}
    columns: dict[str, list[str]] = {"exact match": [], "ROUGE-L": [], "BLEU": [], "loss per token": []}
    base: dict[str, Ratios] = {}
    for result in results:
        answers = [result.answers[i] for i in kept]
        exact = [float(result.ended[i] and a == r) for i, a, r in zip(kept, answers, references, strict=True)]
        overlap = [rouge.score(r, a)["rougeL"].fmeasure for a, r in zip(answers, references, strict=True)]
        sums = {"loss per token": (result.losses[fits], result.tokens[fits])}
        if kept:
            ones = torch.ones(len(kept))
            sums |= {"exact match": (torch.tensor(exact), ones), "ROUGE-L": (torch.tensor(overlap), ones)}
            bleu = BLEU(effective_order=False).corpus_score(answers, [references]).score
            columns["BLEU"].append(f"{bleu:.1f}")
        for name, ratios in sums.items():
            show: Callable[[float], str] = (lambda x: f"{x:.4f}") if "loss" in name else (lambda x: f"{x:.1%}")
            columns[name].append(_cell(ratios, base.get(name), draws[len(ratios[0])], show))
        base = base or sums
    columns = {name: cells for name, cells in columns.items() if cells}
    lines[-2:] = [f"| model | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in zip(args.models, *columns.values(), strict=True)]
    return "\n".join(lines)


class _Tasks:
    """Tasks of the harness and what the models made of them."""

    def __init__(self, args: CompareArgs) -> None:
        from lit_llm.evaluation.harness import task_manager, task_names

        assert args.tasks is not None
        self.args, self.names = args, task_names(args.tasks)
        self.manager = task_manager(self.names, args.include_path)
        self.scores: list[dict[tuple[str, str], Tensor]] = []
        """For each model, and each task with its metric: the score of each question."""

    def run(self, model: GPT, tokenizer: Tokenizer, checkpoint_dir: Path) -> None:
        from lm_eval.evaluator import simple_evaluate

        from lit_llm.evaluation.harness import HarnessModel

        results: Any = simple_evaluate(
            model=HarnessModel(model, tokenizer, checkpoint_dir, self.args.batch_size), tasks=list(self.names),
            num_fewshot=self.args.num_fewshot, limit=self.args.limit, log_samples=True, task_manager=self.manager,
            bootstrap_iters=0,
        )  # fmt: skip
        scores: dict[tuple[str, str], list[float]] = {}
        for task, samples in results["samples"].items():
            for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
                for metric in sample["metrics"]:
                    if isinstance(value := sample[metric], int | float):  # others have no mean, such as perplexities
                        which = metric if sample["filter"] == "none" else f"{metric} ({sample['filter']})"
                        scores.setdefault((task, which), []).append(float(value))
        self.scores.append({name: torch.tensor(values) for name, values in scores.items()})

    def table(self) -> str:
        generator = torch.Generator().manual_seed(self.args.seed)
        lines = ["", f"| task | metric | questions | {' | '.join(map(str, self.args.models))} |"]
        lines.append("|---" * (len(self.args.models) + 3) + "|")
        for (task, metric), first in self.scores[0].items():
            n = len(first)
            draws = torch.randint(n, (self.args.n_resamples, n), generator=generator)
            ratios = [(scores[task, metric], torch.ones(n)) for scores in self.scores]
            cells = [_cell(r, ratios[0] if i else None, draws, lambda x: f"{x:.1%}") for i, r in enumerate(ratios)]
            lines.append(f"| {task} | {metric} | {n} | {' | '.join(cells)} |")
        return "\n".join(lines)


def _cell(ours: Ratios, base: Ratios | None, draws: Tensor, show: Callable[[float], str]) -> str:
    """The mean, and the interval of its difference to that of the base."""
    value = show((ours[0].sum() / ours[1].sum()).item())
    if base is None:
        return value
    low, high = paired_bootstrap(ours, base, draws)
    return f"{value} ({'+' if low >= 0 else ''}{show(low)} to {'+' if high >= 0 else ''}{show(high)})"


def paired_bootstrap(ours: Ratios, base: Ratios, draws: Tensor) -> tuple[float, float]:
    """95 % interval of the difference of two ratios of sums, over the same resampled rows (Efron and Tibshirani, 1993, ch. 13).

    Args:
        draws: (resamples, rows) indices of rows.
    """
    ratios = [numerator[draws].sum(1) / denominator[draws].sum(1) for numerator, denominator in (ours, base)]
    low, high = (ratios[0] - ratios[1]).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high
