"""The training loop, one for every method: which parameters train and what the loss is come from outside.

A step is an optimizer step. Its loss is the sum over all its labels divided once by their number, so that neither
micro-batches, packing nor devices change the gradient. Where a run has several ranks, all of them are in the same step and
decide alike: whatever a decision is made of is first made the same on all.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_llm.args.finetune import EvalArgs, TrainArgs
from lit_llm.data.batches import MicroBatch, StepPlan, collate, empty_like
from lit_llm.data.examples import Example, Pair
from lit_llm.devices.fsdp import whole
from lit_llm.memory import peak_memory_gb
from lit_llm.progress import Progress
from lit_llm.ranks import largest, n_ranks, rank, shared_folder, total
from lit_llm.training.metrics import Metrics
from lit_llm.training.out_of_memory import naming_the_batch
from lit_llm.training.saves import State, largest_weight, load_state, remove_old_saves, save_state, saves, set_aside_later

if TYPE_CHECKING:
    from lightning.fabric import Fabric
from lit_llm.training.objective import Objective
from lit_llm.training.schedule import Schedule


def fit(
    fabric: "Fabric",
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    plan: StepPlan,
    examples: Sequence[Example | Pair],
    validation: Sequence[MicroBatch],
    args: TrainArgs,
    eval_args: EvalArgs,
    out_dir: Path,
    write_result: Callable[[Path | None], None],
    resume_dir: Path | None = None,
    columns: Sequence[str] = (),
    data: dict[str, Any] | None = None,
) -> State:
    """Train until the first limit, and return where it ended.

    Args:
        objective, optimizer: As `fabric.setup` returns them.
        validation: Micro-batches of the validation data; may be empty.
        write_result: Writes the trained model into a folder; called for `best` and for each save, and with None on ranks that
            only take part.
        resume_dir: A `step-*` folder of this run to go on from.
        columns: What the loss shows besides its sum.
        data: What `examples` are, for each save to keep.

    Raises:
        KeyboardInterrupt: after SIGINT or SIGTERM, when the step is made and saved.
        ValueError: if a loss, of training or validation, or a trained weight is not a number any more, or if the loss rises by
            more than `args.max_loss_spike`; nothing is saved then.
        OutOfMemoryError: if a micro-batch does not fit.
    """
    schedule = Schedule.from_args(args, plan.steps_per_epoch)
    # In float16 a step whose gradient overflows is left out and the scale lowered: no fault then.
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    state = State() if resume_dir is None else load_state(resume_dir, objective.gpt, optimizer, scaler)
    if rank() == 0:
        set_aside_later(out_dir, state)
    path = out_dir / "metrics.csv" if rank() == 0 else None
    metrics = Metrics(path, columns, None if resume_dir is None else state.step, fabric.loggers)
    if resume_dir is None and eval_args.initial and validation:
        state.val_loss = state.first_val_loss = validate(fabric, objective, validation, eval_args.max_batches)
        if not math.isfinite(state.val_loss):
            raise ValueError(f"the validation loss before the first step is {state.val_loss}: try another --precision or base")
        metrics.write(step=0, epoch=0, val_loss=state.val_loss, trained_tokens=0)
    if not largest(float(rank() == 0 and (out_dir / "best").is_dir()))[0]:
        state.held_loss = None  # the next that is validated is the best that there is
    progress = Progress("step", schedule.total_steps, state.step)
    start = time.monotonic() - state.seconds
    objective.train()

    def has_ended() -> bool:
        return schedule.ended(state) or (eval_args.patience is not None and state.n_not_better >= eval_args.patience)

    with closing(metrics), _stop_signals() as stopped:
        while not has_ended():
            step_start = time.monotonic()
            lr = schedule.at(state.step, state.seconds)
            indices = plan.examples(state.step)
            groups = plan.deal(indices, n_ranks())[rank()]
            measured = optimizer_step(fabric, objective, optimizer, groups, examples, lr, args.max_norm)
            state.step += 1
            state.trained_tokens += sum(examples[i].n_labels for i in indices)
            # Asked once: between two of the questions below the answers could change.
            state.seconds, n_signals = largest(time.monotonic() - start, len(stopped))
            stop = n_signals > 0
            ended = schedule.ended(state)
            due_eval = eval_args.interval is not None and state.step % eval_args.interval == 0
            due_save = args.save_interval is not None and state.step % args.save_interval == 0
            row, may_write = {}, ended or due_eval or due_save or stop
            if state.step % args.log_interval == 0 or may_write:
                row = {name: value.item() for name, value in measured.items()}  # waits for the GPU
                _check_step(row, state, args.max_loss_spike, scales=scaler is not None, out_dir=out_dir)
            if may_write:  # the loss is that of the weights before the step
                _check_finite("the largest trained weight", largest_weight(objective.gpt), state.step, out_dir)
            speed = sum(plan.lengths[i] for i in indices) / (time.monotonic() - step_start)
            memory = peak_memory_gb(fabric.device)
            if validation and ((eval_args.final and ended) or (due_eval and not ended)):
                state.val_loss = validate(fabric, objective, validation, eval_args.max_batches)
                _check_finite("the validation loss", state.val_loss, state.step, out_dir)
                row["val_loss"] = state.val_loss
                state.n_not_better += 1
                if state.best_val_loss is None or state.val_loss < state.best_val_loss:
                    state.best_val_loss, state.n_not_better = state.val_loss, 0
                if state.held_loss is None or state.val_loss < state.held_loss:
                    state.held_loss = state.val_loss
                    with shared_folder(out_dir / "best") as best:
                        write_result(best)
            if row:
                metrics.write(
                    step=state.step, epoch=state.step / plan.steps_per_epoch, learning_rate=lr,
                    trained_tokens=state.trained_tokens, tokens_per_second=speed, peak_memory_gb=memory,
                    seconds=state.seconds, **row,
                )  # fmt: skip
            shown = {"loss": f"{row['train_loss']:.3f}"} if "train_loss" in row else {}
            progress.update(1, **shown, **{"tok/s": f"{speed:.0f}", "GB": f"{memory:.2f}"})
            if (due_save and not has_ended()) or stop:
                save_state(out_dir / f"step-{state.step:06d}", state, objective.gpt, optimizer, write_result, scaler, data)
                if args.keep_last is not None and rank() == 0:
                    remove_old_saves(out_dir, args.keep_last)
            if stop:
                progress.close()
                raise KeyboardInterrupt
    progress.close()
    return state


def optimizer_step(
    fabric: "Fabric",
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Sequence[int]],
    examples: Sequence[Example | Pair],
    learning_rate: float,
    max_norm: float | None,
) -> dict[str, Tensor]:
    """One optimizer step over this rank's micro-batches, `groups` of indices into `examples`; every rank has as many.

    Returns what `metrics.csv` shows of it: means per target over all ranks, and the gradient norm before clipping.
    """
    n_targets = total(torch.tensor(sum(examples[i].n_targets for group in groups for i in group))).item()
    from lightning.fabric.strategies.ddp import DDPStrategy

    waits = isinstance(fabric.strategy, DDPStrategy)  # with FSDP gradients would be whole until the end of the step
    shown: dict[str, Tensor] = {}
    for i, group in enumerate(groups):
        chosen = [examples[i] for i in group] or [empty_like(examples[0])]
        batch = collate(chosen).to(fabric.device)
        counts = bool(group)
        held_back = fabric.no_backward_sync(objective, enabled=i + 1 < len(groups) and waits)  # pyright: ignore[reportArgumentType]
        with naming_the_batch(batch), held_back:
            loss_sum, sums = objective(batch)
            fabric.backward(loss_sum * (counts * n_ranks()) / n_targets)  # gradients are averaged over the ranks
        for name, value in {"train_loss": loss_sum.detach(), **sums}.items():
            shown[name] = shown.get(name, 0) + value * counts / n_targets
    shown = dict(zip(shown, total(torch.stack(list(shown.values()))), strict=True))
    limit = math.inf if max_norm is None else max_norm
    grad_norm = fabric.clip_gradients(objective, optimizer, max_norm=limit, error_if_nonfinite=False)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
    with naming_the_batch(batch):  # the first step makes the state
        optimizer.step()
    optimizer.zero_grad()
    assert grad_norm is not None
    return {**shown, "grad_norm": whole(grad_norm)}


@torch.no_grad()
def validate(fabric: "Fabric", objective: Objective, batches: Sequence[MicroBatch], max_batches: int | None) -> float:
    """Mean loss per target of the first `max_batches` micro-batches; independent of how they are cut and dealt to ranks."""
    was_training = objective.training
    objective.eval()
    batches, loss_sum = batches[:max_batches], torch.zeros((), dtype=torch.float64)
    for first in range(0, len(batches), n_ranks()):
        own = first + rank()
        batch = batches[min(own, len(batches) - 1)]  # a rank without one takes the last along, and does not count it
        loss = objective(batch.to(fabric.device))[0].item()
        loss_sum += loss if own < len(batches) else 0
    objective.train(was_training)
    return total(loss_sum).item() / sum(batch.n_targets for batch in batches)


def _check_step(row: dict[str, float], state: State, max_loss_spike: float | None, scales: bool, out_dir: Path) -> None:
    """Raises ValueError if the step at hand went wrong, and names the last save, which is from before it."""
    loss, usual = row["train_loss"], state.mean_loss
    _check_finite("the loss", loss, state.step, out_dir)
    if not scales:
        _check_finite("the norm of the gradient", row["grad_norm"], state.step, out_dir)
    if max_loss_spike is not None and usual is not None and loss > max_loss_spike * usual:
        mistake = f"the loss is {loss:.4g} after a mean of {usual:.4g}, above --train.max_loss_spike {max_loss_spike}"
        raise _went_wrong(mistake, state.step, out_dir)
    state.mean_loss = loss if usual is None else 0.9 * usual + 0.1 * loss


def _check_finite(what: str, value: float, step: int, out_dir: Path) -> None:
    if not math.isfinite(value):
        raise _went_wrong(f"{what} is {value}", step, out_dir)


def _went_wrong(mistake: str, step: int, out_dir: Path) -> ValueError:
    good = saves(out_dir)
    kept = f"the last good save is {good[-1]}" if good else "there is no save from before"
    return ValueError(
        f"{mistake} at step {step}; nothing was saved since, and {kept}. "
        "Try a lower --train.learning_rate or a longer --train.lr_warmup_steps, in another --out_dir"
    )


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM fill; a second one ends the program at once."""
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
