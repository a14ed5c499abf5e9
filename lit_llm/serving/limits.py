"""Checks that all routes share: the key, the host, the length and the time of a body, and the limits of a request."""

import asyncio
import hashlib
import hmac
import ipaddress
import math
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

from fastapi.responses import JSONResponse
from pydantic import AfterValidator, Field

from lit_llm.serving.errors import RequestError, error_response

MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_CHARACTERS = 64  # of a token, on average over a prompt; English has 4
MAX_LOG_PROBS = 1_000_000  # of the tokens of an answer and the top tokens at each position: about 40 MB of JSON
PUBLIC_PATHS = ("/", "/health")  # need no key: the page asks the user for it, and a health check has none

# A body that is too long is read up to this limit and discarded after the error was sent. Otherwise a client that sends the
# whole body before it reads would see a broken connection.
MAX_DISCARDED = 64 * 2**20
DISCARD_SECONDS = 10.0

BODY_SECONDS = 30.0
"""Longest time to wait for the bytes of a body, in all."""
SHORT = 16_384
"""Bytes of a short request. All bytes beyond that, of all requests together, are read at LONG_RATE."""
LONG_RATE = 1_000_000
"""Bytes per second. Parsing them takes a tenth of the time, in which the engine's thread waits."""

QUICK_RATE = 100
"""Answers per second that need no model: errors, and all but POST. A client that repeats them would keep the engine waiting."""
QUICK_SECONDS = 1.0
"""Longest time that such an answer waits for those before it."""

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]


def check_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("the text has an unpaired surrogate (invalid Unicode)") from error
    return text


def _check_stops(stops: list[str]) -> list[str]:
    if len(stops) > MAX_STOPS:
        raise ValueError(f"{len(stops)} stop sequences are above this server's limit of {MAX_STOPS}")
    if any(len(s) > MAX_STOP_LENGTH for s in stops):
        raise ValueError(f"a stop sequence is longer than {MAX_STOP_LENGTH} characters")
    return [s for s in stops if s]


UnicodeStr = Annotated[str, AfterValidator(check_unicode)]
StopSequences = Annotated[list[UnicodeStr], Field(fail_fast=True), AfterValidator(_check_stops)]


@contextmanager
def blaming(field: str, code: str | None = None) -> Iterator[None]:
    """Turn a ValueError into a RequestError for this field of the request."""
    try:
        yield
    except ValueError as error:
        raise RequestError(400, str(error), field, code) from error


def check_n_characters(n: int, max_length: int, field: str, code: str | None = None) -> None:
    """Raise RequestError if a text cannot fit into the context, before it is tokenized."""
    if n > MAX_CHARACTERS * max_length:
        message = f"{n} characters exceed the context of {max_length} tokens, at {MAX_CHARACTERS} characters a token"
        raise RequestError(400, message, field, code)


def check_context(n_prompt: int, n_new: int, max_length: int, field: str, code: str | None = None) -> None:
    """Raise RequestError if the prompt and the new tokens exceed the context."""
    if n_prompt + n_new > max_length:
        message = f"{n_prompt} prompt tokens and {n_new} to generate exceed the context of {max_length}"
        raise RequestError(400, message, field, code)


def check_n_new(n_new: int, max_new_tokens: int, field: str, code: str | None = None) -> None:
    """Raise RequestError if the server does not allow this many new tokens."""
    if n_new > max_new_tokens:
        raise RequestError(400, f"{n_new} new tokens are above this server's limit of {max_new_tokens}", field, code)


def check_n_log_probs(n_tokens: int, n_top: int, field: str) -> None:
    """Raise RequestError if one request asks for too many scores: of each token, and of `n_top` tokens at its position."""
    if (n := n_tokens * (n_top + 1)) > MAX_LOG_PROBS:
        message = f"{n} log-probabilities are above this server's limit of {MAX_LOG_PROBS}"
        raise RequestError(400, message, field, "invalid_value")


class LimitsMiddleware:
    """Middleware that rejects requests without the key, for another host, or with a long or slow body.

    Args:
        key: None accepts all requests.
        max_size: Most bytes of a body.
        host: Loopback address that the server listens on without a key. A page of another site must not reach it through a
            name that its owner points to this address (DNS rebinding). None: any name is accepted.
    """

    def __init__(self, app: App, key: str | None, max_size: int, host: str | None) -> None:
        self.app, self.max_size, self.host = app, max_size, host
        self.bodies, self.quick = Pace(LONG_RATE), Pace(QUICK_RATE, QUICK_SECONDS)
        self.digest = None if key is None else _digest(key.encode())

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        await self._answer(scope, receive, self._at_pace(scope["method"], send))

    def _at_pace(self, method: str, send: Send) -> Send:
        """Return `send`, which delays answers without the model if there are too many."""

        async def paced(message: Any) -> None:
            if message["type"] == "http.response.start" and (message["status"] >= 400 or method != "POST"):
                await self.quick.wait(1)
            await send(message)

        return paced

    async def _answer(self, scope: Any, receive: Receive, send: Send) -> None:
        path, headers = scope["path"], dict(scope["headers"])
        if (error := self._refusal(path, headers)) is not None:
            response = error_response(path, error)
            response.headers["Connection"] = "close"  # what follows may be the rest of this request, or another one
            return await response(scope, receive, send)
        messages, size = deque[Any](), 0

        async def replay() -> Any:
            return messages.popleft() if messages else await receive()

        if int(headers.get(b"content-length", b"0")) <= self.max_size:  # the server has checked that it is a number
            try:
                async for message in _body(receive, BODY_SECONDS):
                    messages.append(message)
                    n_new = len(message.get("body", b""))
                    size += n_new
                    if size > self.max_size:
                        break
                    await self.bodies.wait(min(n_new, size - SHORT))
                else:
                    return await self.app(scope, replay, send)
            except TimeoutError:
                error = RequestError(408, f"the request took longer than {BODY_SECONDS:g} s to arrive", code="timeout")
                return await error_response(path, error)(scope, receive, send)
        error = RequestError(413, f"the request is longer than {self.max_size} bytes", code="request_too_large")
        await _send_and_discard(error_response(path, error), size, receive, send)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> RequestError | None:
        if b"content-length" in headers and b"transfer-encoding" in headers:  # two servers may see different requests
            return RequestError(
                400, "the request has both Content-Length and Transfer-Encoding. Send one", code="invalid_value"
            )
        name = headers.get(b"host", b"localhost").decode("latin-1")
        if self.host is not None and not _is_local(name, self.host):
            message = f"without a key this server is for {self.host} and localhost, not for the host {name[:100]!r}"
            return RequestError(403, message, code="forbidden_host")
        if path not in PUBLIC_PATHS and not self._has_key(headers):
            return RequestError(401, "this server requires a key: Authorization: Bearer KEY", code="invalid_api_key")
        return None

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        if self.digest is None:
            return True
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(_digest(key.strip()), self.digest) and scheme.lower() == b"bearer"


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on this host can be reached from this machine only."""
    try:
        address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    except (OSError, UnicodeError):
        return False
    return ipaddress.ip_address(str(address).partition("%")[0]).is_loopback


def _is_local(name: str, host: str) -> bool:
    """Return whether a Host header is `host`, localhost or an address, which nobody else can point to this machine."""
    name = name.lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0].rstrip(".")
    with suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return name in (host.lower(), "localhost") or name.endswith(".localhost")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()  # of one length, so that a comparison takes the same time for every key


async def _body(receive: Receive, seconds: float) -> AsyncIterator[Any]:
    """Yield the messages of a body, or what is left of it. Raises TimeoutError after this time of waiting for them."""
    more = True
    while more:
        start = time.monotonic()
        yield (message := await asyncio.wait_for(receive(), seconds))
        seconds -= time.monotonic() - start
        more = message.get("more_body", False)


class Pace:
    """Lets things happen at a rate: each waits for those before it.

    Args:
        rate: Number per second.
        longest: Most seconds to wait.
    """

    def __init__(self, rate: float, longest: float = math.inf) -> None:
        self.rate, self.longest, self._free_at = rate, longest, 0.0

    async def wait(self, n: int) -> None:
        await asyncio.sleep(self.delay(n))

    def delay(self, n: int) -> float:
        """Return the seconds until these `n` may happen."""
        if n <= 0:
            return 0.0
        now = time.monotonic()
        start = min(max(now, self._free_at), now + self.longest)
        self._free_at = start + n / self.rate
        return start - now


async def _send_and_discard(response: JSONResponse, size: int, receive: Receive, send: Send) -> None:
    """Send the response, then read the rest of a body. `size` bytes of it were read before."""
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})

    async def discard(seen: int) -> None:
        async for message in _body(receive, DISCARD_SECONDS):
            seen += len(message.get("body", b""))
            if seen >= MAX_DISCARDED:
                return

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(discard(size), DISCARD_SECONDS)
    await send({"type": "http.response.body", "body": b""})
