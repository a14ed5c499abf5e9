"""The training loop, one for every method: which parameters train and how they are scored come from outside.

A step is an optimizer step. Its loss is the sum over all its labels, divided once by their number, so that micro-batches,
packing and devices do not change the gradient. All ranks of a run are in the same step and decide alike: every number that a
decision depends on is first made equal on all ranks.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_llm.args.finetune import FinetuneArgs
from lit_llm.data.batches import MicroBatch, collate, empty_like
from lit_llm.data.examples import Example, Pair
from lit_llm.devices.fsdp import whole
from lit_llm.errors import LitError
from lit_llm.memory import peak_memory_gb
from lit_llm.methods.method import Method
from lit_llm.progress import Progress
from lit_llm.ranks import largest, n_ranks, rank, shared_folder, total
from lit_llm.training.metrics import Metrics
from lit_llm.training.objective import Objective
from lit_llm.training.out_of_memory import naming_the_batch
from lit_llm.training.run_data import RunData
from lit_llm.training.run_folder import RunFolder
from lit_llm.training.saves import State, largest_weight, load_state, save_state
from lit_llm.training.schedule import Schedule

if TYPE_CHECKING:
    from lightning.fabric import Fabric

WriteResult = Callable[[Path | None], None]
"""Writes the trained model into a folder; called with None on ranks that only take part."""


@dataclass(frozen=True)
class Job:
    """A run as it is decided before a weight is loaded."""

    args: FinetuneArgs
    method: Method
    data: RunData
    folder: RunFolder

    @property
    def schedule(self) -> Schedule:
        return Schedule.from_args(self.args.train, self.data.plan.steps_per_epoch)


def fit(
    fabric: "Fabric", objective: Objective, optimizer: torch.optim.Optimizer, job: Job, write_result: WriteResult
) -> State:  # fmt: skip
    """Train until the first limit, and return the final state.

    Args:
        objective, optimizer: As `fabric.setup` returns them.
        write_result: Called for `best` and for each save.

    Raises:
        KeyboardInterrupt: after SIGINT or SIGTERM, when the step is made and saved.
        ValueError: if a loss or a trained weight is not finite, or if the loss rises by more than `train.max_loss_spike`;
            nothing is saved then.
        OutOfMemoryError: if a micro-batch does not fit.
    """
    data, args, eval_args, folder, schedule = job.data, job.args.train, job.args.eval, job.folder, job.schedule
    # In float16 a step whose gradient overflows is skipped and the scale lowered, which is not a fault.
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    resumes = folder.resume_dir is not None
    state = State() if folder.resume_dir is None else load_state(folder.resume_dir, objective.gpt, optimizer, scaler)
    if rank() == 0:
        folder.set_aside_later(state)
    path = folder.metrics if rank() == 0 else None
    columns = (*job.method.columns, *(("router_loss",) if args.router_loss else ()), *data.columns)
    metrics = Metrics(path, columns, folder.rows_so_far(), fabric.loggers)
    if not resumes and eval_args.initial and data.validation:
        losses = validate_all(fabric, objective, data, eval_args.max_batches)
        state.val_loss = state.first_val_loss = losses["val_loss"]
        if not math.isfinite(state.val_loss):
            raise LitError(
                f"the validation loss before the first step is {state.val_loss}. Try another `precision` or `checkpoint_dir`"
            )
        metrics.write(step=0, epoch=0, trained_tokens=0, **losses)
    if not largest(float(rank() == 0 and folder.best.is_dir()))[0]:
        state.held_loss = None  # the next validated model is the best that exists
    progress = Progress("step", schedule.total_steps, state.step)
    start = time.monotonic() - state.seconds
    objective.train()

    def has_ended() -> bool:
        return schedule.ended(state) or (eval_args.patience is not None and state.n_not_better >= eval_args.patience)

    with closing(metrics), _stop_signals() as stopped:
        while not has_ended():
            step_start = time.monotonic()
            lr = schedule.at(state.step, state.seconds)
            layout = data.layout(state.step)
            measured = optimizer_step(fabric, objective, optimizer, layout[rank()], data.examples, lr, args.max_norm)
            indices = [i for share in layout for group in share for i in group]  # of all ranks
            state.step += 1
            state.trained_tokens += sum(data.examples[i].n_labels for i in indices)
            # Read once: the answers could change between two of the questions below.
            state.seconds, n_signals = largest(time.monotonic() - start, len(stopped))
            stop = n_signals > 0
            ended = schedule.ended(state)
            due_eval = eval_args.interval is not None and state.step % eval_args.interval == 0
            due_save = args.save_interval is not None and state.step % args.save_interval == 0
            row, may_write = {}, ended or due_eval or due_save or stop
            if state.step % args.log_interval == 0 or may_write:
                row = {name: value.item() for name, value in measured.items()}  # waits for the GPU
                _check_step(row, state, args.max_loss_spike, scaler is not None, folder)
            if may_write:  # the loss is that of the weights before the step
                _check_finite("the largest trained weight", largest_weight(objective.gpt), state.step, folder)
            speed = sum(data.plan.lengths[i] for i in indices) / (time.monotonic() - step_start)
            memory = peak_memory_gb(fabric.device)
            if data.validation and ((eval_args.final and ended) or (due_eval and not ended)):
                row |= validate_all(fabric, objective, data, eval_args.max_batches)
                _check_finite("the validation loss", row["val_loss"], state.step, folder)
                if state.note_validation(row["val_loss"]):
                    with shared_folder(folder.best) as best:
                        write_result(best)
            if row:
                metrics.write(
                    step=state.step, epoch=state.step / data.plan.steps_per_epoch, learning_rate=lr,
                    trained_tokens=state.trained_tokens, tokens_per_second=speed, peak_memory_gb=memory,
                    seconds=state.seconds, **data.n_seen(state.step), **row,
                )  # fmt: skip
            shown = {"loss": f"{row['train_loss']:.3f}"} if "train_loss" in row else {}
            progress.update(1, **shown, **{"tok/s": f"{speed:.0f}", "GB": f"{memory:.2f}"})
            if (due_save and not has_ended()) or stop:
                save = folder.path / f"step-{state.step:06d}"
                save_state(save, state, objective.gpt, optimizer, write_result, scaler, data.identity, folder.metrics)
                if args.keep_last is not None and rank() == 0:
                    folder.remove_old_saves(args.keep_last)
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
    """Make one optimizer step over this rank's micro-batches, `groups` of indices into `examples`; all ranks have equally many.

    Returns:
        Columns of `metrics.csv`: means per target over all ranks, and the gradient norm before clipping.
    """
    n_targets = total(torch.tensor(sum(examples[i].n_targets for group in groups for i in group))).item()
    from lightning.fabric.strategies.ddp import DDPStrategy

    waits = isinstance(fabric.strategy, DDPStrategy)  # with FSDP gradients would stay whole until the end of the step
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


def validate_all(fabric: "Fabric", objective: Objective, data: RunData, max_batches: int | None) -> dict[str, float]:
    """Return the validation loss as columns of `metrics.csv`: over all targets and, if there are several sources, of each."""
    losses = {name: validate(fabric, objective, found, max_batches) for name, found in data.validation.items()}
    n = {name: sum(batch.n_targets for batch in found[:max_batches]) for name, found in data.validation.items()}
    mean = sum(loss * n[name] for name, loss in losses.items()) / sum(n.values())
    return {"val_loss": mean, **({f"val_loss_{name}": loss for name, loss in losses.items()} if data.sources else {})}


@torch.no_grad()
def validate(fabric: "Fabric", objective: Objective, batches: Sequence[MicroBatch], max_batches: int | None) -> float:
    """Return the mean loss per target of the first `max_batches` micro-batches, which does not depend on their layout."""
    was_training = objective.training
    objective.eval()
    batches, loss_sum = batches[:max_batches], torch.zeros((), dtype=torch.float64)
    for first in range(0, len(batches), n_ranks()):
        own = first + rank()
        batch = batches[min(own, len(batches) - 1)]  # a rank without one computes the last, and does not count it
        loss = objective(batch.to(fabric.device))[0].item()
        loss_sum += loss if own < len(batches) else 0
    objective.train(was_training)
    return total(loss_sum).item() / sum(batch.n_targets for batch in batches)


def _check_step(
    row: dict[str, float], state: State, max_loss_spike: float | None, is_scaled: bool, folder: RunFolder
) -> None:  # fmt: skip
    """Raise ValueError if the step went wrong, naming the last save, which is from before it."""
    loss, usual = row["train_loss"], state.mean_loss
    _check_finite("the loss", loss, state.step, folder)
    if not is_scaled:
        _check_finite("the norm of the gradient", row["grad_norm"], state.step, folder)
    if max_loss_spike is not None and usual is not None and loss > max_loss_spike * usual:
        mistake = f"the loss is {loss:.4g} after a mean of {usual:.4g}, above `train.max_loss_spike` {max_loss_spike}"
        raise _went_wrong(mistake, state.step, folder)
    state.mean_loss = loss if usual is None else 0.9 * usual + 0.1 * loss


def _check_finite(name: str, value: float, step: int, folder: RunFolder) -> None:
    if not math.isfinite(value):
        raise _went_wrong(f"{name} is {value}", step, folder)


def _went_wrong(mistake: str, step: int, folder: RunFolder) -> LitError:
    saves = folder.saves
    kept = f"the last good save is {saves[-1]}" if saves else "there is no save from before"
    return LitError(
        f"{mistake} at step {step}; nothing was saved since, and {kept}. "
        "Try a lower `train.learning_rate` or a longer `train.lr_warmup_steps`, in another `out_dir`"
    )


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Yield a list that SIGINT and SIGTERM fill; a second one ends the program at once.

    Only the main thread can have signal handlers: in another one the list stays empty.
    """
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
