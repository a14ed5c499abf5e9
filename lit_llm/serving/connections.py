"""Connections: how many there may be, and how long one may take to send the head of a request.

A client that opens many connections and sends nothing, or very slowly, must not keep others out: when all places are taken,
the connection that has waited longest for the rest of its request is closed.
"""

import asyncio
import os
import sys
import time
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lit_llm.serving.limits import QUICK_RATE, QUICK_SECONDS, Pace

HEADER_SECONDS = 10.0
MAX_CONNECTIONS = 1000
BACKLOG = 32  # connections that asyncio accepts at a time, before one of them is counted
QUEUE = 1024  # connections that wait in the kernel
OWN_FILES = 64  # files and sockets of the server itself
QUIET_SECONDS = 60.0  # between two lines in the log about the same error


class Connection(H11Protocol):
    """uvicorn's connection, with a limit of time for the head of a request and a limit of their number.

    Attributes:
        waiting: The connections whose request is not complete, the oldest first.
        quick: The pace of answers to what is not HTTP.
    """

    limit: ClassVar[int]
    waiting: ClassVar[dict["Connection", None]]
    quick: ClassVar[Pace]
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_request()
        if len(self.connections) > self.limit:
            oldest = next(iter(self.waiting))
            del self.waiting[oldest]
            oldest.transport.abort()

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()  # the middleware limits the time of the body
            if not self.cycle.more_body:
                self.waiting.pop(self, None)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP, at the pace of other errors, which the middleware keeps."""
        self.transport.pause_reading()
        self._stop_timer()
        self.loop.call_later(self.quick.delay(1), self._send_400_response, msg)

    def _send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def on_response_complete(self) -> None:
        self._wait_for_request()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.waiting.pop(self, None)
        super().connection_lost(exc)

    def _wait_for_request(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)
        self.waiting.pop(self, None)
        self.waiting[self] = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def server_config(app: Any, **options: Any) -> uvicorn.Config:
    """Return the configuration of a server with limited connections. It logs its own faults, not those of clients."""
    limit, backlog = _limits()
    kind = type("LimitedConnection", (Connection,), {"limit": limit, "waiting": {}, "quick": Pace(QUICK_RATE, QUICK_SECONDS)})
    return uvicorn.Config(app, http=kind, ws="none", log_level="error", access_log=False, backlog=backlog, **options)


def _limits() -> tuple[int, int]:
    """Return numbers of connections, and of connections to accept at a time, that fit into the files that may be open."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS, BACKLOG
    import resource

    n_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if n_files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS, BACKLOG
    backlog = min(BACKLOG, max(n_files // 8, 1))
    return min(MAX_CONNECTIONS, max(n_files - OWN_FILES - backlog, n_files // 4)), backlog


class Log:
    """Handler for exceptions in the event loop. An error of the system is written in one line, and at most once a minute."""

    def __init__(self) -> None:
        self._written = dict[int | None, float]()

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError):
            return loop.default_exception_handler(context)
        if time.monotonic() - self._written.get(error.errno, -QUIET_SECONDS) >= QUIET_SECONDS:
            self._written[error.errno] = time.monotonic()
            print(f"warning: {context.get('message')}: {os.strerror(error.errno or 0)}", file=sys.stderr)
