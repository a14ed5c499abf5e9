"""Models against one another on the same rows: exact answers, ROUGE-L, BLEU, loss, and how sure the differences are."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.adapters import read_adapter, trained_style
from lit_llm.args.evaluate import CompareArgs
from lit_llm.checkpoint import load, resolve_device
from lit_llm.data import read_records, tokenize
from lit_llm.generate import generate
from lit_llm.score import Span, score


@dataclass(frozen=True)
class Result:
    """What one model made of each row; NaN in `losses` where a row does not fit into its context."""

    answers: list[str]
    ended: list[bool]
    losses: Tensor
    """(rows,) Nats of the reference answer with its EOS."""
    tokens: Tensor
    """(rows,) Tokens of it."""


def compare(args: CompareArgs) -> None:
    """Print a markdown table."""
    path = args.data_dir / "val.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Write it with a prepare script, e.g. scripts/prepare_json.py")
    records = read_records(path)
    if odd := next((r for r in records if "instruction" not in r), None):
        raise ValueError(f"{path} must hold rows with instruction and output; one has {', '.join(odd)}")
    records = records[: args.limit]
    styles = [trained_style(folder) for folder in args.models]
    default = args.prompt_style or next((s for s in styles if s), "alpaca")
    results = []
    for folder, style in zip(args.models, styles, strict=True):
        print(f"asking {folder}", file=sys.stderr)
        results.append(_ask(args, folder, records, style or default))
    fits = torch.stack([r.losses.isfinite() for r in results]).all(dim=0)
    if not fits.any():
        raise ValueError(f"no row of {path} fits into the context of all models. Lower --max_new_tokens")
    if n := int((~fits).sum()):
        print(f"{n} rows that do not fit into the context of all models are left out", file=sys.stderr)
    print(_table(args, records, results, fits))


def _ask(args: CompareArgs, folder: Path, records: Sequence[dict[str, Any]], style: str) -> Result:
    adapter = folder if (folder / "adapter.json").is_file() else None
    base = folder if adapter is None else Path(read_adapter(folder)["base_checkpoint_dir"])
    model, tokenizer = load(base, adapter, str(resolve_device(args.accelerator)), args.precision, args.quantize)
    examples = [e for r in records for e in tokenize(r, style, tokenizer, True).documents]  # a row is one document
    prompts = [example.ids[~example.trained].tolist() for example in examples]
    outputs = [example.ids[example.trained].tolist() for example in examples]
    room = model.config.block_size
    pairs = zip(prompts, outputs, strict=True)
    fits = [i for i, (p, o) in enumerate(pairs) if max(len(p) + len(o), len(p) + args.max_new_tokens) <= room]
    losses, answers, ended = torch.full((len(records),), math.nan), [""] * len(records), [False] * len(records)
    spans = [Span(prompts[i] + outputs[i], len(outputs[i])) for i in fits]
    for i, found in zip(fits, score(model, spans, args.batch_size, "losses"), strict=True):
        losses[i] = -math.fsum(found.log_probs)
    for start in range(0, len(fits), args.batch_size):
        batch = fits[start : start + args.batch_size]
        asked = [prompts[i] for i in batch]
        made = generate(model, tokenizer, asked, max_new_tokens=args.max_new_tokens, temperature=0)
        for i, completion in zip(batch, made, strict=True):
            answers[i], ended[i] = completion.text, completion.ended
    return Result(answers, ended, losses, torch.tensor([float(len(o)) for o in outputs]))


def _table(args: CompareArgs, records: Sequence[dict[str, Any]], results: Sequence[Result], fits: Tensor) -> str:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    kept = fits.nonzero()[:, 0].tolist()
    references = [records[i]["output"] for i in kept]
    rouge = RougeScorer(["rougeL"], use_stemmer=False)
    generator = torch.Generator().manual_seed(args.seed)
    draws = torch.randint(len(kept), (args.n_resamples, len(kept)), generator=generator)
    lines = [
        f"{len(kept)} rows of {args.data_dir / 'val.jsonl'}. In brackets: 95 % interval of the difference to the first model.",
        "",
        "| model | exact match | ROUGE-L | BLEU | loss per token |",
        "|---|---|---|---|---|",
    ]
    base: dict[str, tuple[Tensor, Tensor]] = {}
    for folder, result in zip(args.models, results, strict=True):
        answers = [result.answers[i] for i in kept]
        exact = [float(result.ended[i] and a == r) for i, a, r in zip(kept, answers, references, strict=True)]
        overlap = [rouge.score(r, a)["rougeL"].fmeasure for a, r in zip(answers, references, strict=True)]
        ones = torch.ones(len(kept))
        sums = {
            "exact": (torch.tensor(exact), ones),
            "rouge": (torch.tensor(overlap), ones),
            "loss": (result.losses[fits], result.tokens[fits]),
        }
        cells = [_cell(name, sums, base, draws) for name in sums]
        base = base or sums
        bleu = BLEU(effective_order=False).corpus_score(answers, [references]).score
        lines.append(f"| {folder} | {cells[0]} | {cells[1]} | {bleu:.1f} | {cells[2]} |")
    return "\n".join(lines)


def _cell(name: str, sums: dict[str, tuple[Tensor, Tensor]], base: dict[str, tuple[Tensor, Tensor]], draws: Tensor) -> str:
    show: Callable[[float], str] = (lambda x: f"{x:.4f}") if name == "loss" else (lambda x: f"{x:.1%}")
    value = show((sums[name][0].sum() / sums[name][1].sum()).item())
    if not base:
        return value
    low, high = paired_bootstrap(sums[name], base[name], draws)
    return f"{value} ({'+' if low >= 0 else ''}{show(low)} to {'+' if high >= 0 else ''}{show(high)})"


def paired_bootstrap(ours: tuple[Tensor, Tensor], base: tuple[Tensor, Tensor], draws: Tensor) -> tuple[float, float]:
    """95 % interval of the difference of two ratios of sums, over the same resampled rows (Efron and Tibshirani, 1993, ch. 13).

    Args:
        ours, base: Numerator and denominator of each row, (rows,) each.
        draws: (resamples, rows) indices of rows.
    """
    ratios = [numerator[draws].sum(1) / denominator[draws].sum(1) for numerator, denominator in (ours, base)]
    low, high = (ratios[0] - ratios[1]).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high
