"""Checks that all routes share: the key, the length of a body, and the limits of a request."""

import asyncio
import hashlib
import hmac
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

from fastapi.responses import JSONResponse
from pydantic import AfterValidator

from lit_llm.serving.errors import RequestError, error_response

MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_LOG_PROBS = 1_000_000  # of the tokens of an answer and the top tokens at each position: about 40 MB of JSON
PUBLIC_PATHS = ("/", "/health")  # need no key: the page asks the user for it, and a health check has none

# A body that is too long is read up to this limit and discarded after the error was sent. Otherwise a client that sends the
# whole body before it reads would see a broken connection.
MAX_DISCARDED = 64 * 2**20
DISCARD_SECONDS = 10.0

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]


def check_unicode(text: str) -> str:
    text.encode()  # JSON can contain an unpaired surrogate (invalid Unicode): a ValueError
    return text


def _check_stops(stops: list[str]) -> list[str]:
    if len(stops) > MAX_STOPS:
        raise ValueError(f"{len(stops)} stop sequences are above this server's limit of {MAX_STOPS}")
    if any(len(s) > MAX_STOP_LENGTH for s in stops):
        raise ValueError(f"a stop sequence is longer than {MAX_STOP_LENGTH} characters")
    return [s for s in stops if s]


UnicodeStr = Annotated[str, AfterValidator(check_unicode)]
StopSequences = Annotated[list[UnicodeStr], AfterValidator(_check_stops)]


@contextmanager
def blaming(field: str, code: str | None = None) -> Iterator[None]:
    """Turn a ValueError into a RequestError for this field of the request."""
    try:
        yield
    except ValueError as error:
        raise RequestError(400, str(error), field, code) from error


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


class KeyAndSizeMiddleware:
    """Middleware that rejects requests without the key, and those with a long body.

    Args:
        key: None accepts all requests.
        max_size: Most bytes of a body.
    """

    def __init__(self, app: App, key: str | None, max_size: int) -> None:
        self.app, self.max_size = app, max_size
        self.digest = None if key is None else _digest(key.encode())

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, headers = scope["path"], dict(scope["headers"])
        if path not in PUBLIC_PATHS and not self._has_key(headers):
            error = RequestError(401, "this server requires a key: Authorization: Bearer KEY", code="invalid_api_key")
            return await error_response(path, error)(scope, receive, send)
        messages, size = deque[Any](), 0

        async def replay() -> Any:
            return messages.popleft() if messages else await receive()

        if int(headers.get(b"content-length", b"0")) <= self.max_size:  # the server has checked that it is a number
            async for message in _body(receive):
                messages.append(message)
                size += len(message.get("body", b""))
                if size > self.max_size:
                    break
            else:
                return await self.app(scope, replay, send)
        error = RequestError(413, f"the request is longer than {self.max_size} bytes", code="request_too_large")
        await _send_and_discard(error_response(path, error), size, receive, send)

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        if self.digest is None:
            return True
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(_digest(key.strip()), self.digest) and scheme.lower() == b"bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()  # of one length, so that a comparison takes the same time for every key


async def _body(receive: Receive) -> AsyncIterator[Any]:
    """Yield the messages of a body, or what is left of it."""
    more = True
    while more:
        yield (message := await receive())
        more = message.get("more_body", False)


async def _send_and_discard(response: JSONResponse, size: int, receive: Receive, send: Send) -> None:
    """Send the response, then read the rest of a body. `size` bytes of it were read before."""
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})

    async def discard(seen: int) -> None:
        async for message in _body(receive):
            seen += len(message.get("body", b""))
            if seen >= MAX_DISCARDED:
                return

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(discard(size), DISCARD_SECONDS)
    await send({"type": "http.response.body", "body": b""})
