"""What stands before the routes of the server: limits, the key, and refusals in the shape of the API that was asked."""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any

from fastapi.responses import JSONResponse
from pydantic import AfterValidator

from lit_llm.serving.errors import Refused, refusal

MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_LOG_PROBS = 1_000_000  # of an answer's tokens and of the likeliest beside each: some 40 MB of JSON
OPEN_PATHS = ("/", "/health")  # need no key: the page asks the user for it, and a health check has none

# Of a body that is too long this much is read and thrown away after the refusal was sent. A client that sends all before it
# reads would see a broken connection otherwise.
DISCARDED = 64 * 2**20
DISCARD_SECONDS = 10.0

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]


def as_unicode(text: str) -> str:
    text.encode()  # JSON can hold half of a surrogate pair, which is no text: a ValueError
    return text


def _stops(stops: list[str]) -> list[str]:
    if len(stops) > MAX_STOPS:
        raise ValueError(f"{len(stops)} stop sequences are above this server's limit of {MAX_STOPS}")
    if any(len(s) > MAX_STOP_LENGTH for s in stops):
        raise ValueError(f"a stop sequence is longer than {MAX_STOP_LENGTH} characters")
    return [s for s in stops if s]


Text = Annotated[str, AfterValidator(as_unicode)]
Stops = Annotated[list[Text], AfterValidator(_stops)]


def check_scores(n_tokens: int, n_top: int, field: str) -> None:
    """Raises Refused if so many tokens, each scored beside so many of the likeliest, are too many for one request."""
    if (n := n_tokens * (n_top + 1)) > MAX_LOG_PROBS:
        raise Refused(400, f"{n} log-probabilities are above this server's limit of {MAX_LOG_PROBS}", field, "invalid_value")


class Gate:
    """Middleware that lets a request pass if it carries the key and its body is not too long.

    Args:
        key: None lets everybody in.
        max_size: Bytes of a body at most.
    """

    def __init__(self, app: App, key: str | None, max_size: int) -> None:
        self.app, self.max_size = app, max_size
        self.digest = None if key is None else _digest(key.encode())

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, headers = scope["path"], dict(scope["headers"])
        if self.digest is not None and path not in OPEN_PATHS and not self._has_key(headers):
            error = Refused(401, "this server needs its key: Authorization: Bearer KEY", code="invalid_api_key")
            return await refusal(path, error)(scope, receive, send)
        too_long = Refused(413, f"the request is longer than {self.max_size} bytes", code="request_too_large")
        declared = headers.get(b"content-length", b"0")
        if int(declared) > self.max_size:  # the server has checked that it is a number
            return await _refuse_and_discard(refusal(path, too_long), 0, receive, send)
        messages, size, more = [], 0, True
        while more:
            messages.append(await receive())
            size += len(messages[-1].get("body", b""))
            more = messages[-1].get("more_body", False)
            if size > self.max_size:
                return await _refuse_and_discard(refusal(path, too_long), size, receive, send)
        waiting = iter(messages)

        async def replay() -> Any:
            message = next(waiting, None)
            return await receive() if message is None else message

        await self.app(scope, replay, send)

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        assert self.digest is not None
        return hmac.compare_digest(_digest(key.strip()), self.digest) and scheme.lower() == b"bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()  # of one length, so that comparing takes the same time whatever was sent


async def _refuse_and_discard(response: JSONResponse, size: int, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})

    async def discard() -> None:
        seen, more = size, True
        while more and seen < DISCARDED:
            message = await receive()
            seen += len(message.get("body", b""))
            more = message.get("more_body", False)

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(discard(), DISCARD_SECONDS)
    await send({"type": "http.response.body", "body": b""})
