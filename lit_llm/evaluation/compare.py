"""Models compared on the same rows and tasks: exact match, ROUGE-L, BLEU, loss and scores, with confidence intervals."""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.args.evaluate import CompareArgs
from lit_llm.checkpoint.adapters import is_adapter, read_adapter, trained_style
from lit_llm.checkpoint.load import load
from lit_llm.data.examples import answer_text, tokenize
from lit_llm.data.records import Record
from lit_llm.data.rows import iter_records
from lit_llm.errors import DataError
from lit_llm.evaluation.score import Span, score
from lit_llm.generation.decode import Completion
from lit_llm.generation.generate import generate_batch
from lit_llm.generation.sampling import Sampling
from lit_llm.model.device import resolve_device
from lit_llm.model.gpt import GPT
from lit_llm.text.conversation import default_style, set_template_kwargs
from lit_llm.text.ending import ending
from lit_llm.text.tokenizer import Tokenizer

Ratios = tuple[Tensor, Tensor]
"""Numerator and denominator of each row, (rows,) each. The mean is the ratio of their sums."""


@dataclass(frozen=True)
class RowResults:
    """Results of one model for each row."""

    completions: dict[int, Completion]
    """Greedy answers. Plain texts, and rows that do not fit into the context, have none."""
    references: dict[int, str]
    """The answers of these rows, as a model writes them in its prompt style."""
    losses: Tensor
    """(rows,) Nats of the reference answer with its EOS, or of the text. NaN if a row does not fit into the context."""
    n_tokens: Tensor
    """(rows,) Tokens that the loss sums over."""


def compare_models(args: CompareArgs) -> None:
    """Print a markdown table for the data, and one for the tasks."""
    records = [] if args.data_dir is None else _read_rows(args.data_dir / "val.jsonl", args.limit)
    tasks = None if args.tasks is None else _Tasks(args)
    styles = [trained_style(folder) for folder in args.models]
    default = args.prompt_style or next((s for s in styles if s), None)
    results = []
    for folder, style in zip(args.models, styles, strict=True):
        print(f"evaluating {folder}", file=sys.stderr)
        adapter = folder if is_adapter(folder) else None
        base = folder if adapter is None else Path(read_adapter(folder)["base_checkpoint_dir"])
        model, tokenizer = load(base, adapter, str(resolve_device(args.accelerator)), args.precision, args.quantize)
        if records:
            if style is None:
                style = default or default_style(tokenizer, False)
                set_template_kwargs(tokenizer, args.template_kwargs, style)
            results.append(_evaluate_rows(args, model, tokenizer, records, style))
        if tasks is not None:
            tasks.run(model, tokenizer, base)
    print("In brackets: 95 % interval of the difference to the first model.")
    if records:
        print(_data_table(args, records, results))
    if tasks is not None:
        print(tasks.table())


def _read_rows(path: Path, limit: int | None) -> list[Record]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Write it with a prepare script, e.g. scripts/prepare_json.py")
    records = list(islice(iter_records(path), limit))
    if any("chosen" in record for record in records):
        raise DataError(f"{path} holds preference pairs, which have no single answer. Use rows, conversations or texts")
    return records


def _evaluate_rows(args: CompareArgs, model: GPT, tokenizer: Tokenizer, records: Sequence[Record], style: str) -> RowResults:
    """Score the reference answer of each row, and generate an answer to it. Plain texts are scored only."""
    examples = [e for r in records for e in tokenize(r, style, tokenizer, True, "last").documents]  # a row is one document
    n_scored = [example.n_labels for example in examples]
    ids = [example.ids.tolist() for example in examples]
    block_size = model.config.block_size
    room = [block_size - (0 if "text" in record else args.max_new_tokens) for record in records]  # for the prompt
    fits = [i for i, n in enumerate(n_scored) if n and len(ids[i]) <= block_size and len(ids[i]) - n <= room[i]]
    losses = torch.full((len(records),), math.nan)
    spans = [Span(ids[i], n_scored[i]) for i in fits]
    for i, found in zip(fits, score(model, spans, args.batch_size, "losses"), strict=True):
        losses[i] = -math.fsum(found.log_probs)
    questions, completions = [i for i in fits if "text" not in records[i]], {}
    for start in range(0, len(questions), args.batch_size):
        batch = questions[start : start + args.batch_size]
        prompts, until = [ids[i][: -n_scored[i]] for i in batch], ending(style, tokenizer)
        found = generate_batch(model, tokenizer, prompts, args.max_new_tokens, Sampling(temperature=0), until)
        completions |= zip(batch, found, strict=True)
    references = {i: answer_text(records[i], style, tokenizer) for i in questions}
    return RowResults(completions, references, losses, torch.tensor(n_scored).float())


def _data_table(args: CompareArgs, records: Sequence[Record], results: Sequence[RowResults]) -> str:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    assert args.data_dir is not None
    path, fits = args.data_dir / "val.jsonl", torch.stack([r.losses.isfinite() for r in results]).all(dim=0)
    if not fits.any():
        raise DataError(f"no row of {path} fits into the context of all models. Lower `max_new_tokens`")
    if n := int((~fits).sum()):
        print(f"{n} rows are omitted: they do not fit into the context of all models", file=sys.stderr)
    kept = [i for i in fits.nonzero()[:, 0].tolist() if "text" not in records[i]]
    rouge = RougeScorer(["rougeL"], use_stemmer=False)
    generator = torch.Generator().manual_seed(args.seed)
    draws = {n: torch.randint(n, (args.n_resamples, n), generator=generator) for n in {len(kept), int(fits.sum())} if n}
    columns: dict[str, list[str]] = {"exact match": [], "ROUGE-L": [], "BLEU": [], "loss per token": []}
    base: dict[str, Ratios] = {}
    for result in results:
        answers = [result.completions[i].text.strip() for i in kept]
        ended = [result.completions[i].ended for i in kept]
        references = [result.references[i] for i in kept]
        sums = {"loss per token": (result.losses[fits], result.n_tokens[fits])}
        if kept:
            exact = [float(e and a == r) for e, a, r in zip(ended, answers, references, strict=True)]
            overlap = [rouge.score(r, a)["rougeL"].fmeasure for a, r in zip(answers, references, strict=True)]
            ones = torch.ones(len(kept))
            sums |= {"exact match": (torch.tensor(exact), ones), "ROUGE-L": (torch.tensor(overlap), ones)}
            bleu = BLEU(effective_order=False).corpus_score(answers, [references]).score
            columns["BLEU"].append(f"{bleu:.1f}")
        for name, ratios in sums.items():
            show: Callable[[float], str] = (lambda x: f"{x:.4f}") if "loss" in name else (lambda x: f"{x:.1%}")
            columns[name].append(_mean_with_interval(ratios, base.get(name), draws[len(ratios[0])], show))
        base = base or sums
    columns = {name: cells for name, cells in columns.items() if cells}
    table = _markdown(["model", *columns], zip(args.models, *columns.values(), strict=True))
    return f"\n{int(fits.sum())} rows of {path}.\n\n{table}"


class _Tasks:
    """Tasks of the harness, and the models' scores."""

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
                        name = metric if sample["filter"] == "none" else f"{metric} ({sample['filter']})"
                        scores.setdefault((task, name), []).append(float(value))
        self.scores.append({name: torch.tensor(values) for name, values in scores.items()})

    def table(self) -> str:
        generator, rows = torch.Generator().manual_seed(self.args.seed), []
        for (task, metric), first in self.scores[0].items():
            n = len(first)
            draws = torch.randint(n, (self.args.n_resamples, n), generator=generator)
            ratios = [(scores[task, metric], torch.ones(n)) for scores in self.scores]
            bases = [None, *[ratios[0]] * (len(ratios) - 1)]
            cells = [_mean_with_interval(*pair, draws, lambda x: f"{x:.1%}") for pair in zip(ratios, bases, strict=True)]
            rows.append((task, metric, n, *cells))
        return "\n" + _markdown(["task", "metric", "questions", *self.args.models], rows)


def _markdown(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def _mean_with_interval(ours: Ratios, base: Ratios | None, draws: Tensor, show: Callable[[float], str]) -> str:
    """Return the mean, and the interval of its difference to the mean of the base."""
    value = show((ours[0].sum() / ours[1].sum()).item())
    if base is None:
        return value
    low, high = paired_bootstrap(ours, base, draws)
    return f"{value} ({'+' if low >= 0 else ''}{show(low)} to {'+' if high >= 0 else ''}{show(high)})"


def paired_bootstrap(ours: Ratios, base: Ratios, draws: Tensor) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two ratios of sums (Efron and Tibshirani, 1993, ch. 13).

    Args:
        draws: (resamples, rows) indices of rows. Both ratios are of the same resampled rows.
    """
    ratios = [numerator[draws].sum(1) / denominator[draws].sum(1) for numerator, denominator in (ours, base)]
    low, high = (ratios[0] - ratios[1]).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high
