"""Answers to held-out prompts before and after training."""

import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from lit_llm.args.finetune import FinetuneArgs
from lit_llm.data.examples import answer_text
from lit_llm.data.records import Record, asked, variables_of
from lit_llm.generation.decode import Completion
from lit_llm.generation.generate import generate_batch
from lit_llm.generation.sampling import Sampling
from lit_llm.methods.method import Method
from lit_llm.model.gpt import GPT
from lit_llm.text.conversation import prompt_ids
from lit_llm.text.ending import ending
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.training.metrics import read_rows
from lit_llm.training.saves import State

BATCH_SIZE = 32


class HeldOut:
    """Held-out prompts, and the answers of the model at the time of asking."""

    def __init__(self, args: FinetuneArgs, model: GPT, tokenizer: Tokenizer, records: Iterable[Record], style: str) -> None:
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, args.eval.max_new_tokens
        room = model.config.block_size - args.eval.max_new_tokens
        n_wanted = max(args.eval.exact_match, args.eval.samples)
        asked_as = partial(prompt_ids, style, tokenizer, finetuned=True)
        prompts = ((r, asked_as(asked(r), variables=variables_of(r))) for r in records if "text" not in r)
        fitting = list(islice((found for found in prompts if len(found[1]) <= room), n_wanted))
        self.n_exact, self.n_shown = min(args.eval.exact_match, len(fitting)), min(args.eval.samples, len(fitting))
        self.records, self.prompts = [record for record, _ in fitting], [prompt for _, prompt in fitting]
        self.ending = ending(style, tokenizer)
        self.references = [answer_text(record, style, tokenizer) for record in self.records]

    def answer(self) -> list[Completion]:
        """Generate greedy answers."""
        self.model.eval()
        found: list[Completion] = []
        for i in range(0, len(self.prompts), BATCH_SIZE):
            batch, greedy = self.prompts[i : i + BATCH_SIZE], Sampling(temperature=0)
            found += generate_batch(self.model, self.tokenizer, batch, self.max_new_tokens, greedy, self.ending)
        return found

    def exact(self, answers: Sequence[Completion]) -> int:
        """Count the first `n_exact` answers that have ended and are identical to the reference."""
        pairs = zip(answers[: self.n_exact], self.references[: self.n_exact], strict=True)
        return sum(answer.ended and answer.text.strip() == reference for answer, reference in pairs)

    def side_by_side(self, before: list[Completion] | None, after: list[Completion]) -> dict[str, Any]:
        """Return prompts and answers as strings, by the names of `Run`."""
        old = None if before is None else [answer.text for answer in before]
        return {"prompts": [*map(question_of, self.records)], "before": old, "after": [answer.text for answer in after]}

    def rows(self, before: list[Completion] | None, after: list[Completion]) -> list[tuple[str, str, str, str]]:
        """Return prompt, reference, and the answers of base and finetuned model, for the answers that are shown."""
        old = [answer.text for answer in before] if before is not None else [""] * len(after)
        shown = list(zip(self.records, self.references, old, after, strict=True))[: self.n_shown]
        return [(question_of(record), reference, text, new.text) for record, reference, text, new in shown]


def outcome_lines(state: State, held_out: HeldOut, before: list[Completion] | None, after: list[Completion]) -> list[str]:
    """Return the effect of the training in numbers, one line each."""
    lines, n = [], held_out.n_exact
    if n:
        counts = [held_out.exact(answers) for answers in (before, after) if answers]
        lines.append(f"exact match on held-out prompts: {' -> '.join(f'{k}/{n} ({k / n:.1%})' for k in counts)}")
    if state.first_val_loss is not None and state.val_loss is not None:
        lines.append(f"validation loss: {state.first_val_loss:.4f} -> {state.val_loss:.4f}")
    return lines


def source_lines(metrics: Path) -> list[str]:
    """Return the examples that were drawn from each source, and its first and last validation loss, one line each."""
    rows = read_rows(metrics)
    lines = []
    for name in (column.removeprefix("examples_") for column in rows[-1] if column.startswith("examples_")):
        losses = [float(row[f"val_loss_{name}"]) for row in rows if row.get(f"val_loss_{name}")]
        loss = f", validation loss {' -> '.join(f'{loss:.4f}' for loss in losses[:1] + losses[1:][-1:])}" if losses else ""
        lines.append(f"{name}: {int(rows[-1][f'examples_{name}']):,} examples drawn{loss}")
    return lines


def print_result(
    method: Method, final: Path, state: State, held_out: HeldOut, before: list[Completion] | None,
    after: list[Completion], outcome: Sequence[str],
) -> None:  # fmt: skip
    """Print the answers next to one another, the outcome, the folder of the result and the command to try it."""
    columns = {name: found for name, found in {method.started_as: before, "finetuned": after}.items() if found}
    if columns and held_out.n_shown:
        width = min(shutil.get_terminal_size((120, 24)).columns, 160)
        cell = max((width - 3 * len(columns)) // (1 + len(columns)), 16)
        print(_row(["held-out prompt", *columns], cell))
        print("-" * width)
        for i, record in enumerate(held_out.records[: held_out.n_shown]):
            print(_row([question_of(record), *(found[i].text for found in columns.values())], cell))
        print()
    for line in outcome:
        print(line)
    folder = "checkpoint_dir" if method.trains_base else "adapter_dir"
    print(f"{state.step} steps, {state.seconds:.0f} s. Saved in {final}. Talk to it:")
    print(f'python generate/{method.name}.py --{folder} {final} --prompt "{_shell_safe_question(held_out)}"')


def question_of(record: Record) -> str:
    last = asked(record)[-1]
    return " / ".join(filter(None, (last["content"], last.get("input"))))


def _row(cells: Sequence[str], cell: int) -> str:
    def fit_cell(text: str) -> str:
        text = " ".join(text.split())
        return text if len(text) <= cell else f"{text[: cell - 3]}..."

    return " | ".join(fit_cell(text).ljust(cell) for text in cells).rstrip()


def _shell_safe_question(held_out: HeldOut) -> str:
    """Return a held-out instruction that needs no escapes between double quotes."""
    questions = (messages[0] for r in held_out.records if len(messages := asked(r)) == 1)
    usable = (q["content"] for q in questions if not q.get("input") and not set(q["content"]) & set('"$`\\!\n'))
    return next(usable, "Hello!")
