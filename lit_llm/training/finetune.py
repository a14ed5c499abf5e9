"""One finetuning run, wired from its parts: data, model, method, loop, result."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lit_llm.args.finetune import FinetuneArgs
from lit_llm.checkpoint.adapters import write_adapter, write_finetuned
from lit_llm.checkpoint.load import load_tokenizer
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.read import read_config
from lit_llm.cli import DEMO
from lit_llm.data.batches import MicroBatch, StepPlan, batches, pack
from lit_llm.data.examples import Example, Pair
from lit_llm.data.prepare import prepared
from lit_llm.data.records import PAIR, answer_of, iter_records
from lit_llm.data.token_cache import style_of
from lit_llm.estimation.advice import estimate_for, explain, terms
from lit_llm.files import remove_leftovers
from lit_llm.methods.dpo import DPO
from lit_llm.methods.full import Full
from lit_llm.methods.inject import Method, freeze
from lit_llm.methods.loss import next_token_loss
from lit_llm.model.compiled_blocks import compile_blocks
from lit_llm.model.device import resolve_device, weights_dtype
from lit_llm.ranks import naming_lost_ranks, rank, shared_folder
from lit_llm.text.conversation import prompt_style
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.training.before_and_after import HeldOut, outcome_lines, print_result, question_of
from lit_llm.training.fabric import check_devices, choose_strategy, launch, resolve_precision
from lit_llm.training.loop import fit
from lit_llm.training.metrics import check_logger, make_loggers
from lit_llm.training.objective import Objective
from lit_llm.training.optimizers import check_optimizer, make_optimizer
from lit_llm.training.out_of_memory import OutOfMemoryError
from lit_llm.training.preflight import inspect, load_examples, show
from lit_llm.training.probe import ESTIMATE_FROM, probe
from lit_llm.training.report import changed_options, write_report
from lit_llm.training.run_folder import as_yaml, check_same_data, find_save, is_finished, start_run, write_options
from lit_llm.training.saves import step_of
from lit_llm.training.schedule import Schedule
from lit_llm.training.summary import summary


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
    resume_dir = find_save(args, out_dir)
    if is_finished(args, out_dir):
        _say(f"the run in {out_dir} is already finished: nothing was changed")
        return
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
    data = {"n_examples": found.n_examples, "digest": found.digest, "validation": found.val_digest}
    if resume_dir is not None:
        check_same_data(data, data_dir, resume_dir)
    if args.dry_run:
        print(f"\n{show(examples[0], tokenizer, colour=sys.stdout.isatty())}")
        return

    _say(f"strategy: {why}")
    loggers = make_loggers(args.logger, out_dir, None if resume_dir is None else step_of(resume_dir))
    fabric = launch(args, strategy, device, trains_base=isinstance(method, Full), loggers=loggers)
    device = fabric.device
    dtype = weights_dtype(args.precision, device)
    in_parts = strategy == "fsdp"
    model = load_model(checkpoint_dir, device, dtype, args.quantize, in_parts)
    if isinstance(method, Full):
        method.in_parts = in_parts
    model.activation_checkpointing = args.train.activation_checkpointing
    fabric.seed_everything(args.seed, verbose=False)  # before the method draws its initial weights
    method.attach(model)
    freeze(model, method)
    if config.tie_embeddings and hasattr(model.lm_head, "lora"):
        _say(
            "warning: the head of this model is tied to its embedding: an adapter on it works beside the model, here and in "
            "PEFT, but cannot be merged. To merge later, leave head out of --lora.targets"
        )
    if args.train.compile:
        compile_blocks(model)
    if rank() == 0 and resume_dir is None:
        start_run(args, out_dir)
        for logger in loggers:
            logger.log_hyperparams(as_yaml(args))
    elif rank() == 0:
        write_options(args, out_dir)
    if rank() == 0:
        remove_leftovers(out_dir)  # also of a run that was killed before its first save
    held_out = HeldOut(args, model, tokenizer, iter_records(val_path) if has_val else [], style)
    # In parts, the model answers at the end only: what inference mode has made whole cannot train any more.
    with fabric.autocast():
        before = held_out.answer() if strategy != "fsdp" else None  # of the base: a save is read later
    fabric.seed_everything(args.seed + rank(), verbose=False)  # the same stream whether or not answers were made
    loss = method.loss if isinstance(method, DPO) else next_token_loss
    columns = method.columns if isinstance(method, DPO) else ()
    objective: Any = fabric.setup_module(Objective(model, loss, args.train.neftune_alpha))
    _say(summary(model))
    scaled = args.precision == "16-mixed"
    made = make_optimizer(model, method, args.train, device, scaled)  # over what this rank holds
    optimizer: Any = fabric.setup_optimizers(made)

    def write_result(folder: Path | None) -> None:
        if isinstance(method, Full):
            write_finetuned(folder, model, method, checkpoint_dir, style, dtype)
        else:
            write_adapter(folder, model, method, checkpoint_dir, style)

    validation = _validation(args, val_examples)
    try:
        if args.train.probe and resume_dir is None:
            told, above = probe(fabric, objective, plan, examples, schedule.total_steps, args.train.compile)
            _say(told)
            if above > ESTIMATE_FROM:
                _say(terms(estimate_for(args, config, method, plan.max_tokens)))
        state = fit(
            fabric, objective, optimizer, plan, examples, validation, args.train, args.eval, out_dir, write_result, resume_dir,
            columns, data,
        )  # fmt: skip
    except OutOfMemoryError as error:
        raise ValueError(explain(args, config, method, plan.max_tokens, str(error))) from error
    with shared_folder(out_dir / "final") as final:
        write_result(final)
    with fabric.autocast():
        after = held_out.answer()
    if rank() > 0:
        return
    outcome = outcome_lines(state, held_out, before, after)
    print_result(args, out_dir, state, held_out, before, after, outcome)
    old = [answer.text for answer in before] if before is not None else [""] * len(after)
    shown = list(zip(held_out.records, old, after, strict=True))[: held_out.n_shown]
    write_report(
        out_dir,
        f"{method.name} of {checkpoint_dir.name} on {data_dir.name}",
        [f"{state.step} steps, {state.seconds:.0f} s, {state.trained_tokens:,} trained tokens", *outcome],
        found.text(),
        changed_options(args, type(args)()),
        [(question_of(record), answer_of(record), text, new.text) for record, text, new in shown],
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


def _plan(args: FinetuneArgs, examples: Sequence[Example | Pair]) -> StepPlan:
    lengths = [len(example) for example in examples]
    sizes = args.train.global_batch_size, min(args.train.micro_batch_size, args.train.global_batch_size)
    return StepPlan(lengths, *sizes, max(lengths), args.train.packing, args.seed)


def _validation(args: FinetuneArgs, examples: Sequence[Example | Pair]) -> list[MicroBatch]:
    lengths = [len(example) for example in examples]
    groups = pack(range(len(lengths)), lengths, args.train.micro_batch_size, max(lengths, default=0), args.train.packing)
    return list(batches(groups, examples))
