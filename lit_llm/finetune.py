"""One finetuning run, wired from its parts: data, model, method, loop, result."""

import dataclasses
import itertools
import json
import platform
import shutil
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_llm.adapters import write_adapter, write_finetuned
from lit_llm.args.finetune import FinetuneArgs
from lit_llm.checkpoint import load_model, load_tokenizer, read_config, resolve_device, weights_dtype
from lit_llm.cli import DEMO
from lit_llm.compiling import compile_blocks
from lit_llm.data import (
    PAIR,
    Example,
    MicroBatch,
    Pair,
    Plan,
    answer_of,
    asked,
    batches,
    iter_records,
    lay_out,
)
from lit_llm.distributed import n_ranks, naming_lost_ranks, rank, shared_folder
from lit_llm.files import read_json_object, remove_leftovers, write_json
from lit_llm.generate import Completion, generate
from lit_llm.loggers import check_logger, make_loggers
from lit_llm.loss import next_token_loss
from lit_llm.memory import OutOfMemoryError
from lit_llm.methods.dpo import DPO
from lit_llm.methods.full import Full
from lit_llm.methods.inject import Method, freeze
from lit_llm.model import GPT
from lit_llm.optimizers import check_optimizer, make_optimizer
from lit_llm.preflight import inspect, load_examples, show
from lit_llm.prepare import prepared
from lit_llm.probe import ESTIMATE_FROM, estimate_for, explain, probe, terms
from lit_llm.prompts import prompt_ids, prompt_style, stop_strings
from lit_llm.report_html import changed_options, write_report
from lit_llm.resume import State, machine, saves, step_of
from lit_llm.runtime import check_devices, choose_strategy, launch, resolve_precision
from lit_llm.summary import summary
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokens import style_of
from lit_llm.train import Objective, Schedule, fit

Record = dict[str, Any]


@naming_lost_ranks("The same command with --resume auto goes on from the newest save")
def finetune(args: FinetuneArgs, method: Method) -> None:
    """Train `method` on the data of `args`, write the run folder, and show what changed."""
    device = resolve_device(args.accelerator)
    args = _resolve(args, device)
    check_optimizer(args.train.optimizer, device)
    check_devices(args, device)
    check_logger(args.logger)
    checkpoint_dir, data_dir, out_dir = args.checkpoint_dir, args.data_dir, args.out_dir
    assert checkpoint_dir and data_dir and out_dir and args.precision
    config = read_config(checkpoint_dir)
    strategy, why = choose_strategy(args, device, config)
    tokenizer = load_tokenizer(checkpoint_dir, config)
    if data_dir.is_file():
        data_dir = prepared(data_dir)
    train_path, val_path = data_dir / "train.jsonl", data_dir / "val.jsonl"
    style = args.prompt_style or style_of(train_path, tokenizer)
    args = dataclasses.replace(args, prompt_style=style)
    assert args.precision
    prompt_style(style, tokenizer)
    resume_dir = _find_save(args, out_dir)
    limit = min(args.max_seq_length or config.block_size, config.block_size)
    examples, n_dropped = _examples("training", train_path, style, tokenizer, args, limit)
    has_val = val_path.is_file()
    val_examples = _examples("validation", val_path, style, tokenizer, args, limit)[0] if has_val else []
    if args.train.overfit_batches is not None:
        examples = val_examples = examples[: args.train.overfit_batches * args.train.global_batch_size]
    if args.eval.patience is not None and not val_examples:
        raise ValueError(f"--eval.patience needs validation data: {val_path} does not exist")
    plan = _plan(args, examples)
    schedule = Schedule.from_args(args.train, plan.steps_per_epoch)  # its mistakes are told before the weights are loaded
    found = inspect(examples, val_examples, n_dropped, style, tokenizer, plan)
    print(found.text(), file=sys.stdout if args.dry_run else sys.stderr)
    found.check()
    if args.dry_run:
        print(f"\n{show(examples[0], tokenizer, colour=sys.stdout.isatty())}")
        return

    _say(f"strategy: {why}")
    loggers = make_loggers(args.logger, out_dir, None if resume_dir is None else step_of(resume_dir))
    fabric = launch(args, strategy, device, trains_base=isinstance(method, Full), loggers=loggers)
    device = fabric.device
    dtype = weights_dtype(args.precision, device)
    in_parts = strategy == "fsdp" and args.quantize is None
    if (
        in_parts
    ):  # the weights stay in the mapped file until each process takes its part, which it casts if that makes it larger
        model = load_model(checkpoint_dir, "cpu", None if dtype == torch.float32 else dtype)
    else:
        model = load_model(checkpoint_dir, device, dtype, args.quantize)
    if isinstance(method, Full):
        method.in_parts = in_parts
    model.activation_checkpointing = args.train.activation_checkpointing
    fabric.seed_everything(args.seed, verbose=False)  # before the method draws its initial weights
    method.attach(model)
    freeze(model, method)
    if args.train.compile:
        compile_blocks(model)
    if rank() == 0 and resume_dir is None:
        _start_run(args, out_dir)
        for logger in loggers:
            logger.log_hyperparams(_as_yaml(args))
    elif rank() == 0:
        remove_leftovers(out_dir)
    answers = Answers(args, model, tokenizer, iter_records(val_path) if has_val else [], style)
    # In parts, the model answers at the end only: what inference mode has made whole cannot train any more.
    before = answers.make() if strategy != "fsdp" else None  # of the base: a save is read later
    fabric.seed_everything(args.seed + rank(), verbose=False)  # the same stream whether or not answers were made
    loss = method.loss if isinstance(method, DPO) else next_token_loss
    columns = method.columns if isinstance(method, DPO) else ()
    objective: Any = fabric.setup_module(Objective(model, loss, args.train.neftune_alpha))
    _say(summary(model))
    optimizer: Any = fabric.setup_optimizers(make_optimizer(model, method, args.train, device))  # over what this rank holds

    def write_result(folder: Path | None) -> None:
        if isinstance(method, Full):
            write_finetuned(folder, model, method, checkpoint_dir, style, weights_dtype(args.precision, device))
        else:
            write_adapter(folder, model, method, checkpoint_dir, style)

    validation = _validation(args, val_examples)
    try:
        if args.train.probe and resume_dir is None:
            told, above = probe(fabric, objective, plan, examples, schedule.total_steps)
            _say(told)
            if above > ESTIMATE_FROM:
                _say(terms(estimate_for(args, config, method, plan.max_tokens)))
        state = fit(
            fabric, objective, optimizer, plan, examples, validation, args.train, args.eval, out_dir, write_result, resume_dir,
            columns,
        )  # fmt: skip
    except OutOfMemoryError as error:
        raise ValueError(explain(args, config, method, plan.max_tokens, str(error))) from error
    with shared_folder(out_dir / "final") as final:
        write_result(final)
    after = answers.make()
    if rank() > 0:
        return
    outcome = _outcome(state, answers, before, after)
    _tell(args, out_dir, state, answers, before, after, outcome)
    shown = list(zip(answers.records, before or [], after, strict=False))[: answers.n_shown]
    write_report(
        out_dir,
        f"{method.name} of {checkpoint_dir.name} on {data_dir.name}",
        [f"{state.step} steps, {state.seconds:.0f} s, {state.trained_tokens:,} trained tokens", *outcome],
        found.text(),
        changed_options(args, type(args)()),
        [(_question(record), answer_of(record), old.text, new.text) for record, old, new in shown],
    )


def _resolve(args: FinetuneArgs, device: torch.device) -> FinetuneArgs:
    """Fill in what depends on the device and the data, so that args.yaml says what really ran."""
    assert args.data_dir is not None
    name = "demo" if args.data_dir.parent == DEMO else args.data_dir.resolve().name
    name = name if not args.data_dir.is_file() else args.data_dir.stem
    train = args.train
    if train.epochs is None and train.max_steps is None and train.max_time is None:
        train = dataclasses.replace(train, epochs=1)
    return dataclasses.replace(
        args,
        out_dir=args.out_dir or Path("out") / args.method / name,
        precision=resolve_precision(args.precision, device),
        train=train,
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _examples(
    what: str, path: Path, style: str, tokenizer: Tokenizer, args: FinetuneArgs, limit: int
) -> tuple[list[Example | Pair], int]:
    """Examples to train on and the number that was dropped. Raises ValueError unless all are pairs, for DPO, or none is."""
    examples, n_dropped = load_examples(path, style, tokenizer, args.mask_prompt, args.train_on, limit)
    if any(isinstance(example, Pair) != (args.method == "dpo") for example in examples):
        if args.method == "dpo":
            raise ValueError(f"DPO needs preference pairs, with {', '.join(PAIR)}; {path} holds other records")
        raise ValueError(f"{path} holds preference pairs (chosen, rejected). Train on them with finetune/dpo.py")
    n_tokens, n_targets = sum(map(len, examples)), sum(e.n_labels for e in examples)
    dropped = f"; {n_dropped} longer than {limit} tokens dropped" if n_dropped else ""
    _say(f"{what}: {len(examples):,} examples, {n_tokens:,} tokens, {n_targets:,} of them trained{dropped}")
    return examples, n_dropped


def _plan(args: FinetuneArgs, examples: Sequence[Example | Pair]) -> Plan:
    lengths = [len(example) for example in examples]
    sizes = args.train.global_batch_size, min(args.train.micro_batch_size, args.train.global_batch_size)
    return Plan(lengths, *sizes, max(lengths), args.train.packing, args.seed)


def _validation(args: FinetuneArgs, examples: Sequence[Example | Pair]) -> list[MicroBatch]:
    lengths = [len(example) for example in examples]
    groups = lay_out(range(len(lengths)), lengths, args.train.micro_batch_size, max(lengths, default=0), args.train.packing)
    return list(batches(groups, examples))


# The run folder


def _find_save(args: FinetuneArgs, out_dir: Path) -> Path | None:
    """The save to resume from, None for a new run. Raises ValueError if `out_dir` holds a run that is not to be resumed."""
    started = (out_dir / "args.yaml").is_file()
    if args.resume is None:
        if out_dir.is_file() or (out_dir.is_dir() and any(out_dir.iterdir())):
            raise ValueError(f"{out_dir} already holds a run. Add --resume auto to go on with it, or choose another --out_dir")
        return None
    if args.resume == "auto":
        found = saves(out_dir) if started else []
        resume_dir = found[-1] if found else None
    else:
        resume_dir = Path(args.resume)
        if not (resume_dir / "state.json").is_file():
            raise FileNotFoundError(f"--resume {resume_dir} is not a save of a run: it has no state.json. Try --resume auto")
    if resume_dir is not None:
        _check_same_run(out_dir, _as_yaml(args), resume_dir, args.devices * args.num_nodes)
    return resume_dir


def _start_run(args: FinetuneArgs, out_dir: Path) -> None:
    """Make the run folder and write what describes the run."""
    out_dir.mkdir(parents=True, exist_ok=True)
    options = yaml.safe_dump(_as_yaml(args), sort_keys=False, allow_unicode=True)
    (out_dir / "args.yaml").write_text(options, encoding="utf-8")
    versions = {name: version(name) for name in ("torch", "lightning", "tokenizers", "safetensors", "bitsandbytes")}
    about = {"python": platform.python_version(), "platform": platform.platform(), **machine(n_ranks()), "versions": versions}
    write_json(out_dir / "environment.json", about)


def _as_yaml(args: FinetuneArgs) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(args), default=str))


def _check_same_run(out_dir: Path, options: dict[str, Any], resume_dir: Path, n_devices: int) -> None:
    """Raises ValueError if an option differs that changes what is trained; warns if the machine does."""
    saved = yaml.safe_load((out_dir / "args.yaml").read_text(encoding="utf-8"))
    no_matter = ("resume", "dry_run", "logger", "eval", "train", "devices", "num_nodes", "strategy", "cpu_offload")
    changed = [name for name in options if options[name] != saved.get(name) and name not in no_matter]
    free = ("max_time", "save_interval", "log_interval", "keep_last", "probe")
    changed += [f"train.{n}" for n, v in options["train"].items() if v != saved["train"].get(n) and n not in free]
    if changed:
        raise ValueError(
            f"the run in {out_dir} was started with another --{', --'.join(changed)}. Use --config {out_dir}/args.yaml"
        )
    before = read_json_object(resume_dir / "state.json")
    if different := [name for name, value in machine(n_devices).items() if before.get(name) != value]:
        _say(f"warning: {' and '.join(different)} differ from the run that saved: the result will not be bit-identical")
    _say(f"resuming from {resume_dir}")


# Before and after


class Answers:
    """Answers of the model, as it is when asked, to held-out prompts."""

    def __init__(self, args: FinetuneArgs, model: GPT, tokenizer: Tokenizer, records: Iterable[Record], style: str) -> None:
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, args.eval.max_new_tokens
        room = model.config.block_size - args.eval.max_new_tokens
        n_wanted = max(args.eval.exact_match, args.eval.samples)
        prompts = ((r, prompt_ids(style, tokenizer, asked(r))) for r in records if "text" not in r)
        fitting = list(itertools.islice((found for found in prompts if len(found[1]) <= room), n_wanted))
        self.n_exact, self.n_shown = min(args.eval.exact_match, len(fitting)), min(args.eval.samples, len(fitting))
        self.records, self.prompts = [record for record, _ in fitting], [prompt for _, prompt in fitting]
        self.stop = stop_strings(style, tokenizer)

    def make(self) -> list[Completion]:
        """Greedy answers, in batches of 32."""
        self.model.eval()
        found: list[Completion] = []
        for i in range(0, len(self.prompts), 32):
            batch = self.prompts[i : i + 32]
            found += generate(
                self.model, self.tokenizer, batch, max_new_tokens=self.max_new_tokens, temperature=0, stop=self.stop
            )
        return found

    def exact(self, answers: Sequence[Completion]) -> int:
        """How many of the first `n_exact` are identical to the reference and have ended."""
        pairs = zip(answers[: self.n_exact], self.records, strict=False)
        return sum(answer.ended and answer.text.strip() == answer_of(record).strip() for answer, record in pairs)


def _outcome(state: State, answers: Answers, before: list[Completion] | None, after: list[Completion]) -> list[str]:
    """What training changed, in numbers."""
    found = []
    if answers.n_exact:
        rates = (
            f"{answers.exact(a)}/{answers.n_exact} ({answers.exact(a) / answers.n_exact:.1%})" for a in (before, after) if a
        )
        found.append(f"exact match on held-out prompts: {' -> '.join(rates)}")
    if state.first_val_loss is not None and state.val_loss is not None:
        found.append(f"validation loss: {state.first_val_loss:.4f} -> {state.val_loss:.4f}")
    return found


def _tell(
    args: FinetuneArgs, out_dir: Path, state: State, answers: Answers, before: list[Completion] | None,
    after: list[Completion], outcome: Sequence[str],
) -> None:  # fmt: skip
    """Print what changed, where the result is, and how to talk to it."""
    width = min(shutil.get_terminal_size((120, 24)).columns, 160)
    cell = max((width - 6) // 3, 16)
    if before is not None and answers.n_shown:
        print(_row("held-out prompt", "base", "finetuned", cell))
        print("-" * width)
        for record, old, new in list(zip(answers.records, before, after, strict=True))[: answers.n_shown]:
            print(_row(_question(record), old.text, new.text, cell))
        print()
    for line in outcome:
        print(line)
    final = out_dir / "final"
    special = {"full": ("full", "checkpoint_dir"), "dpo": ("lora", "adapter_dir")}
    script, folder = special.get(args.method, (args.method, "adapter_dir"))
    print(f"{state.step} steps, {state.seconds:.0f} s. Saved in {final}. Talk to it:")
    print(f'python generate/{script}.py --{folder} {final} --prompt "{_shell_safe(answers)}"')


def _question(record: Record) -> str:
    last = asked(record)[-1]
    return " / ".join(filter(None, (last["content"], last.get("input"))))


def _row(question: str, old: str, new: str, cell: int) -> str:
    def fit_cell(text: str) -> str:
        text = " ".join(text.split())
        return text if len(text) <= cell else f"{text[: cell - 3]}..."

    return " | ".join(fit_cell(text).ljust(cell) for text in (question, old, new)).rstrip()


def _shell_safe(answers: Answers) -> str:
    """A held-out instruction that can stand between double quotes, to try the result with."""
    questions = (messages[0] for r in answers.records if len(messages := asked(r)) == 1)
    usable = (q["content"] for q in questions if not q.get("input") and not set(q["content"]) & set('"$`\\!\n'))
    return next(usable, "Hello!")
