"""Continuous batching: one thread runs the model for all requests, which join and leave the batch between steps."""

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lit_llm.generation.decode import Batch, Row, TokenScore, prompt_scores, sample_next
from lit_llm.generation.sampling import NOT_FINITE, Sampling
from lit_llm.model.gpt import GPT
from lit_llm.text.ending import Ending
from lit_llm.text.stream import TextStream
from lit_llm.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "timeout", "closed", "error"]
"""EOS or a stop sequence; the limit of tokens; the limit of time; the engine was closed; a fault, which is logged to stderr."""


@dataclass(frozen=True)
class Job:
    """A prompt to continue, and the options of its continuation."""

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    ending: Ending
    n_top: int | None = None
    """Score the new tokens and this many of the most likely tokens at each position. None: no scores."""
    score_prompt: bool = False
    """Score all tokens of the prompt except the first as well."""
    continues: bool = True
    """The text continues the prompt's text, and keeps a leading space."""


@dataclass(frozen=True)
class ScoredToken:
    """A token, the text that it contributes, and its score."""

    id: int
    text: str
    score: TokenScore


@dataclass(frozen=True)
class Chunk:
    """Output that became certain in a step. Over all chunks of a job, the texts of `tokens` join to `text`."""

    text: str = ""
    tokens: Sequence[ScoredToken] = ()
    """Empty unless the job asks for scores."""
    prompt_scores: Sequence[TokenScore] = ()
    """In the first chunk, if the job asks for them."""
    finish: FinishReason | None = None
    """Set in the last chunk only."""
    n_new: int = 0
    """Tokens generated so far, including an EOS and those of a stop sequence."""


class QueueFullError(RuntimeError):
    """The maximum number of jobs is waiting."""


class ClosedError(RuntimeError):
    """The engine accepts no more jobs."""


class _HeldTokens:
    """Scored tokens, held until the text that they contribute is certain.

    The text stream of a row holds text back, since it may begin a stop sequence. A token is released when the row's text has
    reached its end: tokens are never ahead of the text.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int]) -> None:
        self._stream = TextStream(tokenizer, (), before)  # without stop sequences: all text of each token
        self._tokens: deque[ScoredToken] = deque()
        self._start = 0  # position of the first held token in the text

    def add(self, token: int, score: TokenScore) -> None:
        self._tokens.append(ScoredToken(token, self._stream.feed(token), score))

    def close(self) -> None:
        """Give the rest of an unfinished character to the last token."""
        if self._tokens:
            last = self._tokens.pop()
            self._tokens.append(replace(last, text=last.text + self._stream.close()))

    def release(self, n_chars: int, stopped: bool, done: bool) -> list[ScoredToken]:
        """Return the tokens within the first `n_chars` characters. If a stop sequence ends the text there, cut the last one."""
        released = []
        n_incomplete = int(self._stream.within and not done)  # the last token is to get the rest of its character
        while len(self._tokens) > n_incomplete:
            token = self._tokens[0]
            if stopped and self._start >= n_chars:
                break
            if self._start + len(token.text) > n_chars:
                if not stopped:
                    break
                token = replace(token, text=token.text[: n_chars - self._start])
            released.append(token)
            self._start += len(self._tokens.popleft().text)
        return released


class Task(Row):
    """A job in progress: a row that emits chunks. `emit` is called in the engine's thread and must not block."""

    def __init__(self, job: Job, tokenizer: Tokenizer, emit: Callable[[Chunk], None], deadline: float) -> None:
        super().__init__(tokenizer, job.prompt, job.max_new_tokens, job.sampling, job.ending, job.continues, job.n_top)
        self.job, self.emit, self.deadline, self.cancelled, self.closed = job, emit, deadline, False, False
        self._held = None if job.n_top is None else _HeldTokens(tokenizer, job.prompt if job.continues else ())

    def take(self, token: int, score: TokenScore | None = None) -> str:
        """Add a token, and emit the text and the scored tokens that became certain."""
        n_ids, text, tokens = len(self.ids), super().take(token, score), []
        if self._held is not None:
            if score is not None and len(self.ids) > n_ids:  # not an EOS, which has no text
                self._held.add(token, score)
            if self.done:
                self._held.close()
            tokens = self._held.release(len(self.stream.text), self.stream.stopped, self.done)
        finish = ("stop" if self.ended else "length") if self.done else None
        if text or tokens or finish:
            self.emit(Chunk(text, tokens, finish=finish, n_new=self.n_new))
            self.closed = finish is not None
        return text

    def end(self, finish: FinishReason) -> None:
        """Emit the last chunk, unless it was emitted."""
        self.done = True
        if not self.closed:
            self.closed = True
            self.emit(Chunk(finish=finish, n_new=self.n_new))


class Engine:
    """Runs jobs on a model that nothing else uses in the meantime.

    A waiting job is prefilled by itself, in one pass, and joins the batch; a step costs what the running jobs cost.

    Args:
        max_batch_size: Jobs that run at the same time.
        max_length: Most tokens of a prompt and its answer; at most the model's context.
        max_queue: Jobs that may wait.
        timeout: Most seconds of a job, counted from `submit`.
        int8: Hold keys and values in 8 bits.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        max_batch_size: int,
        max_length: int,
        max_queue: int,
        timeout: float,
        int8: bool = False,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_batch_size, self.max_length, self.timeout = max_batch_size, max_length, timeout
        self.capacity = max_batch_size + max_queue  # most jobs that run or wait
        self._batch = Batch[Task](model, max_batch_size, max_length, int8)  # only the engine's thread uses it
        self._admitted: deque[Task] = deque()  # jobs with a place in the batch; the first is being prefilled
        self._waiting: deque[Task] = deque()
        self._changed = threading.Condition()
        self._ends_at: float | None = None  # when unfinished jobs are ended; set once the engine is closing
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job], emit: Callable[[int, Chunk], None], deadline: float | None = None) -> list[Task]:
        """Accept all of these jobs. `emit` is called with the index of a job among them and each of its chunks.

        Args:
            deadline: When they are ended, as of `time.monotonic`. None: after `timeout`.

        Raises:
            QueueFullError: if there is no place for all of them; none is accepted then.
            ClosedError: if the engine was closed.
        """
        assert all(job.prompt and len(job.prompt) + job.max_new_tokens <= self.max_length for job in jobs)
        deadline = time.monotonic() + self.timeout if deadline is None else deadline
        with self._changed:
            if self._ends_at is not None:
                raise ClosedError
            if self._n_unfinished() + len(jobs) > self.capacity:
                raise QueueFullError(f"{len(self._waiting)} requests are waiting already. Try again later")
            tasks = [Task(job, self.tokenizer, lambda chunk, i=i: emit(i, chunk), deadline) for i, job in enumerate(jobs)]
            self._waiting.extend(tasks)
            self._changed.notify()
        return tasks

    def cancel(self, tasks: Sequence[Task]) -> None:
        """Cancel tasks: they leave the batch before the next step, and emit nothing from then on."""
        with self._changed:
            for task in tasks:
                task.cancelled = True
            self._waiting = deque(task for task in self._waiting if not task.cancelled)
            self._changed.notify()

    def n_unfinished(self) -> int:
        """Return the number of jobs that run or wait."""
        with self._changed:
            return self._n_unfinished()

    def _n_unfinished(self) -> int:
        return len({*self._batch.rows, *self._admitted}) + len(self._waiting)  # one being prefilled may be a row already

    def close(self, grace: float) -> None:
        """Accept no more jobs, and end those that are unfinished after `grace` seconds. Does not wait: see `join`."""
        with self._changed:
            self._ends_at = min(self._ends_at or float("inf"), time.monotonic() + grace)
            self._changed.notify()

    def join(self) -> None:
        """Wait for the thread of a closed engine."""
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        """Prefill the jobs that were admitted, then make one step for all running jobs, until the engine is closed."""
        while self._admit():
            while self._admitted:
                task = self._admitted[0]
                if not self._is_over(task, time.monotonic()):  # others were prefilled since it was admitted
                    self._guarded([task], self._prefill, task)
                self._admitted.popleft()
            if self._batch.rows:
                self._guarded(self._batch.rows, self._decode_step)

    def _admit(self) -> bool:
        """Wait for work, drop the jobs that are over, and admit waiting jobs. Return False when closed and done."""
        with self._changed:
            while not (self._batch.rows or self._waiting):
                if self._ends_at is not None:
                    return False
                self._changed.wait()
            now = time.monotonic()
            for i in reversed(range(len(self._batch.rows))):
                if self._is_over(self._batch.rows[i], now):
                    self._batch.leave(i)
            self._waiting = deque(task for task in self._waiting if not self._is_over(task, now))
            for _ in range(min(self.max_batch_size - len(self._batch.rows), len(self._waiting))):
                self._admitted.append(self._waiting.popleft())
            return True

    def _is_over(self, task: Task, now: float) -> bool:
        """Return whether a task is cancelled or out of time. In the latter case end it."""
        if not task.cancelled:
            if self._ends_at is not None and now > self._ends_at:
                task.end("closed")
            elif now > task.deadline:
                task.end("timeout")
            else:
                return False
        return True

    def _guarded(self, tasks: list[Task], function: Callable[..., object], *arguments: Any) -> None:
        """Call `function`. An exception, such as out of memory, ends these tasks and not the server."""
        try:
            function(*arguments)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            for task in tasks:
                task.end("error")
            self._batch.drop_done()

    def _prefill(self, task: Task) -> None:
        """Read a prompt into the batch's cache, and sample the first new token."""
        job = task.job
        if job.score_prompt:
            task.emit(Chunk(prompt_scores=prompt_scores(self.model, job.prompt, job.n_top or 0)))
        if job.max_new_tokens == 0:
            return task.end("length")
        self._sample_next([task], self._batch.prefill([task]))

    def _decode_step(self) -> None:
        """Add one token to each running job."""
        self._sample_next(self._batch.rows, self._batch.decode_step())

    def _sample_next(self, tasks: Sequence[Task], hidden: Tensor) -> None:
        """Sample a token for each task from its row of hidden states (B, C). Tasks that are done leave the batch."""
        for task, (token, score) in zip(list(tasks), sample_next(self.model, hidden, tasks), strict=True):
            if token < 0:
                print(NOT_FINITE, file=sys.stderr)
                self._batch.cache.clear(self._batch.rows.index(task))
                task.end("error")
            else:
                self._guarded([task], task.take, token, score)
        self._batch.drop_done()
