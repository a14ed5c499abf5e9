"""Rendering and tokenizing in threads: long requests wait for one another, and never delay short ones."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lit_llm.serving.errors import RequestError
from lit_llm.serving.limits import SHORT

T = TypeVar("T")


class Preparation:
    """Threads that render and tokenize prompts. One for long requests, so that these never take all of them.

    Args:
        timeout: Most seconds from a request to the end of its answer.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._short, self._long = (ThreadPoolExecutor(n, thread_name_prefix="asyncio-prepare") for n in (2, 1))

    async def run(self, n_bytes: int, make: Callable[[], T]) -> tuple[T, float]:
        """Return what `make` returns, and when the answer must be complete, as of `time.monotonic`.

        Raises:
            RequestError: if the time is over before.
        """
        deadline = time.monotonic() + self.timeout
        pool = self._short if n_bytes <= SHORT else self._long
        try:
            made = await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(pool, make), self.timeout)
        except TimeoutError as error:
            message = f"the request was not prepared within this server's limit of {self.timeout:g} s"
            raise RequestError(503, message, code="timeout") from error
        return made, deadline

    def close(self) -> None:
        """Drop the requests that wait."""
        for pool in (self._short, self._long):
            pool.shutdown(wait=False, cancel_futures=True)
