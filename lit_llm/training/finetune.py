"""One finetuning run, wired from its parts: data, model, method, loop, result."""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_llm.args.finetune import FinetuneArgs
from lit_llm.checkpoint.adapters import Adapter, fill, write_adapter, write_finetuned
from lit_llm.checkpoint.load import load_tokenizer
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.prequantized import stored_quantization
from lit_llm.checkpoint.read import empty_model, read_config
from lit_llm.cli import DEMO
from lit_llm.data.mixture import sources_of
from lit_llm.errors import OptionError, OutOfMemory
from lit_llm.estimation.advice import estimate_for, explain, terms
from lit_llm.methods.inject import freeze
from lit_llm.methods.method import Method
from lit_llm.methods.registry import method_type
from lit_llm.model.compiled_blocks import compile_blocks
from lit_llm.model.config import Config
from lit_llm.model.device import check_compiler, resolve_device, weights_dtype
from lit_llm.model.gpt import GPT
from lit_llm.ranks import claimed_for_all, naming_lost_ranks, rank, shared_folder
from lit_llm.text.conversation import CHAT_TEMPLATE, prompt_style, set_template_kwargs
from lit_llm.training.before_and_after import HeldOut, outcome_lines, print_result, source_lines
from lit_llm.training.fabric import Strategy, check_devices, choose_strategy, launch, resolve_precision
from lit_llm.training.loop import Job, WriteResult, fit
from lit_llm.training.metrics import check_logger, make_loggers
from lit_llm.training.objective import Objective
from lit_llm.training.optimizers import check_optimizer, make_optimizer
from lit_llm.training.out_of_memory import OutOfMemoryError
from lit_llm.training.plan import plan
from lit_llm.training.preflight import show
from lit_llm.training.probe import ESTIMATE_FROM, probe
from lit_llm.training.report import changed_options, write_report
from lit_llm.training.router_loss import check_router_loss
from lit_llm.training.run import Run
from lit_llm.training.run_data import held_out_records, open_data, read_data, style_of_all
from lit_llm.training.run_folder import RunFolder
from lit_llm.training.saves import State
from lit_llm.training.started_method import method_of
from lit_llm.training.summary import summary

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@naming_lost_ranks("The same command with --resume auto resumes from the newest save")
def finetune(args: FinetuneArgs, method: Method | None = None) -> Run:
    """Train on the data of `args`, write the run folder, print what changed, and return it.

    Args:
        method: By default the one that `args` name, with their options.

    Raises:
        ValueError, FileNotFoundError: for unusable options, data or checkpoints; see `lit_llm.errors`.
        KeyboardInterrupt: after SIGINT or SIGTERM, when the step is saved.
    """
    device = resolve_device(args.accelerator)
    if args.train.compile and not args.dry_run:
        check_compiler(device, "train.compile")
    args = _resolve(args, device, (method or method_type(args.method)).trains_base)
    with claimed_for_all(None if args.dry_run else args.out_dir, "out_dir", in_place=True):
        return _finetune(args, method, device)


def _finetune(args: FinetuneArgs, method: Method | None, device: torch.device) -> Run:
    model_dir, data_dir = args.checkpoint_dir, args.data_dir
    assert model_dir and data_dir
    config = read_config(model_dir)
    check_router_loss(args.train.router_loss, config)
    empty = empty_model(config)
    start = None if args.init_from is None else Adapter(args.init_from, config)
    if method is not None and start is not None:
        raise OptionError("`init_from` has a method already. Omit `method`")
    if method is None:
        args, method = method_of(args, empty, start)
    strategy, why = choose_strategy(args, device, sum(p.numel() for p in empty.parameters()), method.trains_base)
    tokenizer = load_tokenizer(model_dir, config)
    files = open_data(data_dir)
    style = args.prompt_style or (start and start.about["prompt_style"]) or style_of_all(files, tokenizer)
    prompt_style(style, tokenizer)  # refuses an unknown one
    kwargs = {**((start and start.about.get("template_kwargs")) or {}), **(args.template_kwargs or {})}
    set_template_kwargs(tokenizer, kwargs if args.template_kwargs or style == CHAT_TEMPLATE else None, style)
    args = dataclasses.replace(args, prompt_style=style, template_kwargs=tokenizer.template_kwargs or None)
    assert args.out_dir is not None
    folder = RunFolder(args.out_dir) if args.dry_run else RunFolder.open(args)
    if not args.dry_run and folder.resume_dir is None and folder.status == "finished":
        _say(f"the run in {folder.path} is already finished: nothing was changed")
        return folder.result()
    data, found = read_data(args, method, files, tokenizer, min(args.max_seq_length or config.block_size, config.block_size))
    job = Job(args, method, data, folder)
    _ = job.schedule  # refuses a warmup that reaches the end of the run, before weights are loaded
    print(found.text(), file=sys.stdout if args.dry_run else sys.stderr)
    found.check()
    folder.check_same_data(data.identity, data_dir)
    if args.dry_run:
        print(f"\n{plan(job, empty, device)}")
        print(f"\n{show(data.examples[0], tokenizer, colour=sys.stdout.isatty())}")
        return folder.result()

    _say(f"strategy: {why}")
    fabric = launch(args, strategy, device, method.trains_base, make_loggers(args.logger, folder.path, folder.resume_step))
    model = _load(job, fabric, empty, strategy, start)
    folder.start(args, fabric.loggers)
    held_out = HeldOut(args, model, tokenizer, held_out_records(files), style)
    # In parts, the model answers at the end only: what inference mode has gathered cannot train any more.
    with fabric.autocast():
        before = held_out.answer() if strategy != "fsdp" else None  # of the base: a save is read later
    write_result = partial(_write_result, model=model, job=job)
    state = _train(job, fabric, model, config, write_result)
    with shared_folder(folder.final) as final:
        write_result(final)
    with fabric.autocast():
        after = held_out.answer()
    outcome = [*outcome_lines(state, held_out, before, after), *(source_lines(folder.metrics) if data.sources else ())]
    if rank() == 0:
        print_result(method, folder.final, state, held_out, before, after, outcome)
        _write_report(job, state, outcome, found.text(), held_out.rows(before, after))
    return folder.result(**held_out.side_by_side(before, after), outcome=outcome)


def _write_report(job: Job, state: State, outcome: list[str], preflight: str, rows: list[tuple[str, str, str, str]]) -> None:
    assert job.args.checkpoint_dir is not None
    title = f"{job.method.name} of {job.args.checkpoint_dir.name} on {_data_name(job.args)}"
    started = "" if job.args.init_from is None else f", started from the adapter {job.args.init_from}"
    end = f"{state.step} steps, {state.seconds:.0f} s, {state.trained_tokens:,} trained tokens{started}"
    changed = changed_options(job.args, type(job.args)())
    write_report(job.folder.path, title, [end, *outcome], preflight, changed, rows, job.method.started_as)


def _resolve(args: FinetuneArgs, device: torch.device, trains_base: bool) -> FinetuneArgs:
    """Fill in the options that depend on device, checkpoint and data, so that args.yaml records what runs.

    Raises:
        ValueError: if optimizer, devices or logger are not available.
    """
    train = args.train
    if train.epochs is None and train.max_steps is None and train.max_time is None:
        train = dataclasses.replace(train, epochs=1)
    precision, quantize = resolve_precision(args.precision, device), args.quantize
    if quantize is None and not trains_base and precision != "16-mixed" and args.checkpoint_dir is not None:
        quantize = stored_quantization(args.checkpoint_dir)
    args = dataclasses.replace(
        args,
        out_dir=args.out_dir or Path("out") / args.method / _data_name(args),
        precision=precision,
        quantize=quantize,
        train=train,
    )
    check_optimizer(train.optimizer, device)
    check_devices(args, device)
    check_logger(args.logger)
    return args


def _data_name(args: FinetuneArgs) -> str:
    """The names of the sources of data, for the default of `out_dir`."""
    assert args.data_dir is not None
    return "demo" if args.data_dir.parent == DEMO else "+".join(source.name for source in sources_of(args.data_dir))[:100]


def _load(job: Job, fabric: "Fabric", empty: GPT, strategy: Strategy, start: Adapter | None) -> GPT:
    """Fill the model, attach the method with the values that it starts from, and freeze the rest."""
    args, method, in_parts = job.args, job.method, strategy == "fsdp"
    assert args.checkpoint_dir is not None
    dtype = weights_dtype(args.precision, fabric.device)
    model = load_model(args.checkpoint_dir, fabric.device, dtype, args.quantize, in_parts, empty=empty)
    model.activation_checkpointing = args.train.activation_checkpointing
    fabric.seed_everything(args.seed, verbose=False)  # before the method draws its initial weights
    method.in_parts = in_parts
    method.attach(model)
    if start is not None:
        start.check_base(model)
        fill(model, start.tensors())
        method.start(model)
    freeze(model, method)
    if warning := method.warning(model):
        _say(f"warning: {warning}")
    if args.train.compile:
        compile_blocks(model)
    return model


def _train(job: Job, fabric: "Fabric", model: GPT, config: Config, write_result: WriteResult) -> State:
    """Set up what trains, probe the longest micro-batch, and fit."""
    args, method, data = job.args, job.method, job.data
    fabric.seed_everything(args.seed + rank(), verbose=False)  # the same stream whether or not answers were made
    objective: Any = fabric.setup_module(Objective(model, method.loss, args.train.neftune_alpha, args.train.router_loss))
    _say(summary(model))
    is_scaled = args.precision == "16-mixed"
    made = make_optimizer(model, method, args.train, fabric.device, is_scaled)  # over what this rank holds
    optimizer: Any = fabric.setup_optimizers(made)
    try:
        if args.train.probe and job.folder.resume_dir is None:
            text, above = probe(fabric, objective, data, job.schedule.total_steps, args.train.compile)
            _say(text)
            if above > ESTIMATE_FROM:
                _say(terms(estimate_for(args, config, method, data.plan.max_tokens)))
        return fit(fabric, objective, optimizer, job, write_result)
    except OutOfMemoryError as error:
        raise OutOfMemory(explain(args, config, method, data.plan.max_tokens, str(error))) from error


def _write_result(folder: Path | None, model: GPT, job: Job) -> None:
    assert job.args.checkpoint_dir is not None
    write = write_finetuned if job.method.trains_base else write_adapter
    write(folder, model, job.method, job.args.checkpoint_dir, job.args.prompt_style, job.args.template_kwargs)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
