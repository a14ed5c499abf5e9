"""Continuous batching: one thread runs the model for all requests, which join and leave the batch between two steps.

B running jobs, C = n_embd, V vocabulary.
"""

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lit_llm.cache import KVCache
from lit_llm.generate import TokenScore, next_hidden, prefill, prompt_scores, token_scores
from lit_llm.model import GPT
from lit_llm.pieces import WINDOW
from lit_llm.sampling import Sampling, sample
from lit_llm.text_stream import TextStream
from lit_llm.tokenizer import Tokenizer

Finish = Literal["stop", "length", "timeout", "closed", "error"]
"""EOS or a stop sequence; the limit of tokens; the limit of time; the engine was closed; a fault, which stderr tells."""


@dataclass(frozen=True)
class Job:
    """A prompt to continue, and how."""

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    n_top: int | None = None
    """Score the new tokens, each beside this many of the likeliest; None: no scores."""
    score_prompt: bool = False
    """Score the tokens of the prompt but the first as well."""
    continues: bool = True
    """The text goes on from the prompt's text, and keeps a leading space."""


@dataclass(frozen=True)
class Token:
    """A new token: what it contributes to the text, and what the model made of it."""

    text: str
    score: TokenScore


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


class Task:
    """A job under way. `emit` is called with each chunk, in the engine's thread, and must not wait."""

    def __init__(self, job: Job, tokenizer: Tokenizer, emit: Callable[[Chunk], None], deadline: float) -> None:
        self.job, self.emit, self.deadline, self.cancelled = job, emit, deadline, False
        self.ids = list(job.prompt)
        self.generator = job.sampling.generator()
        before = job.prompt[-WINDOW:] if job.continues else []
        self._end_ids = tokenizer.eos_ids
        self._stream = TextStream(tokenizer, job.stop, before)
        self._pieces = None if job.n_top is None else TextStream(tokenizer, (), before)
        self._held: deque[Token] = deque()  # tokens whose text is held back
        self._start = 0  # where the text of the first of them begins

    @property
    def n_new(self) -> int:
        return len(self.ids) - len(self.job.prompt)

    def push(self, token: int, score: TokenScore | None) -> bool:
        """Emit what became certain with this token. Returns whether it was the last."""
        self.ids.append(token)
        ended = token in self._end_ids
        text = "" if ended else self._stream.feed(token)
        if self._pieces is not None and score is not None and not ended:
            self._held.append(Token(self._pieces.feed(token), score))
        finish = "stop" if ended or self._stream.stopped else "length" if self.n_new == self.job.max_new_tokens else None
        if finish is not None:
            text += self._stream.close()
            if self._pieces is not None and self._held:
                last = self._held.pop()
                self._held.append(Token(last.text + self._pieces.close(), last.score))
        tokens = self._release(finish)
        if text or tokens or finish:
            self.emit(Chunk(text, tokens, finish=finish, n_new=self.n_new))
        return finish is not None

    def _release(self, finish: Finish | None) -> list[Token]:
        """The tokens whose text is out. At the end all, but for what a stop sequence cuts off."""
        end, tokens = len(self._stream.text), []
        while self._held:
            token = self._held[0]
            if self._stream.stopped:
                if self._start >= end:
                    break
                token = Token(token.text[: end - self._start], token.score)
            elif finish is None and self._start + len(token.text) > end:
                break
            tokens.append(token)
            self._start += len(self._held.popleft().text)
        return tokens

    def end(self, finish: Finish) -> None:
        self.emit(Chunk(finish=finish, n_new=self.n_new))


class Engine:
    """Runs jobs on a model that nothing else uses meanwhile.

    The running jobs are the first rows of one key/value cache. A job that waits is read by itself, in one pass, and put into
    the row behind them; when one ends, the last row takes its place. So a step costs what the running jobs cost.

    Args:
        max_batch_size: Jobs that run at the same time.
        max_length: Tokens of a prompt and its answer at most; not above the model's context.
        max_queue: Jobs that may wait.
        timeout: Seconds from `submit` after which a job ends.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, *, max_batch_size: int, max_length: int, max_queue: int, timeout: float
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_batch_size, self.max_length, self.max_queue, self.timeout = max_batch_size, max_length, max_queue, timeout
        weight = model.wte.weight
        self._cache = KVCache(model.config, max_batch_size, max_length, weight.device, weight.dtype, chunk=1)
        self._running: list[Task] = []  # task i is row i of the cache; only the engine's thread touches it
        self._n_reading = 0  # jobs that are about to join them
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
        deadline = time.monotonic() + self.timeout
        tasks = []
        for i, job in enumerate(jobs):
            assert job.prompt and len(job.prompt) + job.max_new_tokens <= self.max_length
            tasks.append(Task(job, self.tokenizer, lambda chunk, i=i: emit(i, chunk), deadline))
        with self._changed:
            if self._last_call is not None:
                raise ClosedError("the server is shutting down")
            if self._n_open() + len(tasks) > self.max_batch_size + self.max_queue:
                raise QueueFullError(f"{len(self._waiting)} requests are waiting already. Try again later")
            self._waiting.extend(tasks)
            self._changed.notify()
        return tasks

    def cancel(self, tasks: Sequence[Task]) -> None:
        """Give up on these: they free their places before the next step, and emit nothing more."""
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
        return len(self._running) + self._n_reading + len(self._waiting)

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
        while (admitted := self._next()) is not None:
            for task in admitted:
                self._guarded([task], self._read, task)
                self._n_reading -= 1
            if self._running:
                self._guarded(self._running, self._step)

    def _next(self) -> list[Task] | None:
        """Wait until there is something to do. Returns the jobs that join the batch; None when all is done and closed."""
        with self._changed:
            while not (self._running or self._waiting):
                if self._last_call is not None:
                    return None
                self._changed.wait()
            now = time.monotonic()
            for i in reversed(range(len(self._running))):
                if self._is_over(self._running[i], now):
                    self._free(i)
            self._waiting = deque(task for task in self._waiting if not self._is_over(task, now))
            self._n_reading = min(self.max_batch_size - len(self._running), len(self._waiting))
            return [self._waiting.popleft() for _ in range(self._n_reading)]

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

    def _guarded(self, tasks: list[Task], function: Callable[..., None], *arguments: Task) -> None:
        """A fault, as when memory runs out, ends the jobs that it hits and not the server."""
        try:
            function(*arguments)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            for task in tasks:
                task.end("error")
            self._running = [task for task in self._running if task not in tasks]

    def _read(self, task: Task) -> None:
        """Pass a prompt through the model, and its first new token out."""
        job = task.job
        if job.score_prompt:
            task.emit(Chunk(prompt_scores=prompt_scores(self.model, job.prompt, job.n_top or 0)))
        if job.max_new_tokens == 0:
            return task.end("length")
        cache, hidden = prefill(self.model, [job.prompt], len(job.prompt))
        if not self._take([task], hidden):
            self._cache.put(len(self._running), cache)
            self._running.append(task)

    def _step(self) -> None:
        """One more token for each running job."""
        tokens, positions = [task.ids[-1] for task in self._running], [len(task.ids) - 1 for task in self._running]
        hidden = next_hidden(self.model, self._cache, tokens, positions)  # (B, C)
        for i in reversed(self._take(self._running, hidden)):
            self._free(i)

    def _take(self, tasks: Sequence[Task], hidden: Tensor) -> list[int]:
        """Draw a token for each task from its row of hidden states (B, C). Returns the places of those that are done."""
        logits = self.model.head(hidden)  # (B, V)
        settings = [task.job.sampling for task in tasks]
        drawn = sample(logits, settings, [task.generator for task in tasks], [task.ids for task in tasks])  # (B,)
        scored = [i for i, task in enumerate(tasks) if task.job.n_top is not None]
        scores: dict[int, TokenScore] = {}
        if scored:
            most = max(tasks[i].job.n_top or 0 for i in scored)
            for i, score in zip(scored, token_scores(logits[scored], drawn[scored], most), strict=True):
                top = list(score.top.items())[: tasks[i].job.n_top]  # the likeliest first
                scores[i] = TokenScore(score.log_prob, dict(top))
        return [i for i, token in enumerate(drawn.tolist()) if tasks[i].push(token, scores.get(i))]

    def _free(self, row: int) -> None:
        last = self._running.pop()
        if row < len(self._running):
            self._cache.put(row, self._cache, len(self._running))
            self._running[row] = last
