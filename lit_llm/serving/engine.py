"""Continuous batching: one thread runs the model for all requests, which join and leave the batch between two steps."""

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

Finish = Literal["stop", "length", "timeout", "closed", "error"]
"""EOS or a stop sequence; the limit of tokens; the limit of time; the engine was closed; a fault, which stderr tells."""


@dataclass(frozen=True)
class Job:
    """A prompt to continue, and how."""

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    ending: Ending
    n_top: int | None = None
    """Score the new tokens, each beside this many of the likeliest; None: no scores."""
    score_prompt: bool = False
    """Score the tokens of the prompt but the first as well."""
    continues: bool = True
    """The text goes on from the prompt's text, and keeps a leading space."""


@dataclass(frozen=True)
class Token:
    """A token: what it contributes to the text, and what the model made of it."""

    id: int
    text: str
    score: TokenScore

    def top(self, text_of: Callable[[int], str]) -> list[tuple[str, float]]:
        """Texts and log-probabilities of the likeliest tokens at its place. The token itself is written as in the text."""
        return [(self.text if i == self.id else text_of(i), log_prob) for i, log_prob in self.score.top.items()]


@dataclass(frozen=True)
class Chunk:
    """What became certain in a step. The texts of `tokens`, over all chunks, join to all of `text`."""

    text: str = ""
    tokens: Sequence[Token] = ()
    """Scored tokens, if the job asked for scores."""
    prompt_scores: Sequence[TokenScore] = ()
    """In the first chunk, if the job asked for them."""
    finish: Finish | None = None
    """In the last chunk: why it is the last."""
    n_new: int = 0
    """Tokens made so far, with an EOS and those of a stop sequence."""


class QueueFullError(RuntimeError):
    """As many jobs wait as may."""


class ClosedError(RuntimeError):
    """The engine takes no more jobs."""


class Task(Row):
    """A job under way: a row that emits what becomes certain. `emit` is called in the engine's thread, and must not wait."""

    def __init__(self, job: Job, tokenizer: Tokenizer, emit: Callable[[Chunk], None], deadline: float) -> None:
        super().__init__(tokenizer, job.prompt, job.max_new_tokens, job.sampling, job.ending, job.continues, job.n_top)
        self.job, self.emit, self.deadline, self.cancelled, self.closed = job, emit, deadline, False, False
        before = job.prompt if job.continues else []
        self._pieces = None if job.n_top is None else TextStream(tokenizer, (), before)
        self._held: deque[Token] = deque()  # tokens whose text is held back
        self._start = 0  # where the text of the first of them begins

    def take(self, token: int, score: TokenScore | None = None) -> str:
        n_ids, text = len(self.ids), super().take(token, score)
        if self._pieces is not None and score is not None and len(self.ids) > n_ids:
            self._held.append(Token(token, self._pieces.feed(token), score))
        if self.done and self._pieces is not None and self._held:
            last = self._held.pop()
            self._held.append(replace(last, text=last.text + self._pieces.close()))
        tokens = self._release()
        finish = ("stop" if self.ended else "length") if self.done else None
        if text or tokens or finish:
            self.emit(Chunk(text, tokens, finish=finish, n_new=self.n_new))
            self.closed = finish is not None
        return text

    def _release(self) -> list[Token]:
        """The tokens whose text is out. At the end all, but for what a stop sequence cuts off."""
        end, tokens = len(self.stream.text), []
        within = self._pieces is not None and self._pieces.within and not self.done  # the last is to get the rest, if any
        while len(self._held) > within:
            token = self._held[0]
            if self.stream.stopped:
                if self._start >= end:
                    break
                token = replace(token, text=token.text[: end - self._start])
            elif not self.done and self._start + len(token.text) > end:
                break
            tokens.append(token)
            self._start += len(self._held.popleft().text)
        return tokens

    def end(self, finish: Finish) -> None:
        """Emit the last chunk, unless it was."""
        self.done = True
        if not self.closed:
            self.closed = True
            self.emit(Chunk(finish=finish, n_new=self.n_new))


class Engine:
    """Runs jobs on a model that nothing else uses meanwhile.

    A job that waits is read by itself, in one pass, and joins the batch; a step costs what the running jobs cost.

    Args:
        max_batch_size: Jobs that run at the same time.
        max_length: Tokens of a prompt and its answer at most; not above the model's context.
        max_queue: Jobs that may wait.
        timeout: Seconds from `submit` after which a job ends.
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
        self.capacity = max_batch_size + max_queue  # jobs that run or wait at most
        self._batch = Batch[Task](model, max_batch_size, max_length, int8)  # only the engine's thread touches it
        self._reading: deque[Task] = deque()  # jobs that are about to join them, of which the first is being read
        self._waiting: deque[Task] = deque()
        self._changed = threading.Condition()
        self._last_call: float | None = None  # when jobs still under way are ended, once the engine is closing
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job], emit: Callable[[int, Chunk], None]) -> list[Task]:
        """Take all of these jobs. `emit` is called with the job's place among them and each of its chunks.

        Raises:
            QueueFullError: if not all of them find a place; none is taken then.
            ClosedError: if the engine was closed.
        """
        assert all(job.prompt and len(job.prompt) + job.max_new_tokens <= self.max_length for job in jobs)
        deadline = time.monotonic() + self.timeout
        with self._changed:
            if self._last_call is not None:
                raise ClosedError("the server is shutting down")
            if self._n_open() + len(jobs) > self.capacity:
                raise QueueFullError(f"{len(self._waiting)} requests are waiting already. Try again later")
            tasks = [Task(job, self.tokenizer, lambda chunk, i=i: emit(i, chunk), deadline) for i, job in enumerate(jobs)]
            self._waiting.extend(tasks)
            self._changed.notify()
        return tasks

    def cancel(self, tasks: Sequence[Task]) -> None:
        """Give up on these: they free their places before the next step, and emit nothing from then on."""
        with self._changed:
            for task in tasks:
                task.cancelled = True
            self._waiting = deque(task for task in self._waiting if not task.cancelled)
            self._changed.notify()

    def n_open(self) -> int:
        """Jobs that run or wait."""
        with self._changed:
            return self._n_open()

    def _n_open(self) -> int:
        return len({*self._batch.rows, *self._reading}) + len(self._waiting)  # what is being read may be a row already

    def close(self, grace: float) -> None:
        """Take no more jobs; end those that are not done after this many seconds. Does not wait: see `join`."""
        with self._changed:
            self._last_call = min(self._last_call or float("inf"), time.monotonic() + grace)
            self._changed.notify()

    def join(self) -> None:
        """Wait for the thread of a closed engine."""
        self._thread.join()

    @torch.inference_mode()
    def _work(self) -> None:
        while self._next():
            while self._reading:
                task = self._reading[0]
                if not self._is_over(task, time.monotonic()):  # others were read since it was admitted
                    self._guarded([task], self._read, task)
                self._reading.popleft()
            if self._batch.rows:
                self._guarded(self._batch.rows, self._step)

    def _next(self) -> bool:
        """Wait until there is something to do, and admit jobs to the batch. False when all is done and closed."""
        with self._changed:
            while not (self._batch.rows or self._waiting):
                if self._last_call is not None:
                    return False
                self._changed.wait()
            now = time.monotonic()
            for i in reversed(range(len(self._batch.rows))):
                if self._is_over(self._batch.rows[i], now):
                    self._batch.leave(i)
            self._waiting = deque(task for task in self._waiting if not self._is_over(task, now))
            for _ in range(min(self.max_batch_size - len(self._batch.rows), len(self._waiting))):
                self._reading.append(self._waiting.popleft())
            return True

    def _is_over(self, task: Task, now: float) -> bool:
        if task.cancelled:
            return True
        if self._last_call is not None and now > self._last_call:
            task.end("closed")
        elif now > task.deadline:
            task.end("timeout")
        else:
            return False
        return True

    def _guarded(self, tasks: list[Task], function: Callable[..., object], *arguments: Any) -> None:
        """A fault, as when memory runs out, ends the jobs that it hits and not the server."""
        try:
            function(*arguments)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            for task in tasks:
                task.end("error")
            self._batch.drop_done()

    def _read(self, task: Task) -> None:
        """Pass a prompt through the model, and its first new token out."""
        job = task.job
        if job.score_prompt:
            task.emit(Chunk(prompt_scores=prompt_scores(self.model, job.prompt, job.n_top or 0)))
        if job.max_new_tokens == 0:
            return task.end("length")
        self._take([task], self._batch.prefill([task]))

    def _step(self) -> None:
        """One more token for each running job."""
        self._take(self._batch.rows, self._batch.decode_step())

    def _take(self, tasks: Sequence[Task], hidden: Tensor) -> None:
        """Draw a token for each task from its row of hidden states (B, C); those that are done leave."""
        for task, (token, score) in zip(list(tasks), sample_next(self.model, hidden, tasks), strict=True):
            if token < 0:
                print(NOT_FINITE, file=sys.stderr)
                self._batch.cache.clear(self._batch.rows.index(task))
                task.end("error")
            else:
                self._guarded([task], task.take, token, score)
        self._batch.drop_done()
