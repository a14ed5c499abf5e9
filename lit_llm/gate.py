"""What stands before the routes of the server: limits, the key, and refusals in the shape of the API that was asked."""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator
from starlette.exceptions import HTTPException

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

ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class Refused(Exception):  # noqa: N818
    """A request that is not answered. Each API tells it in its own shape.

    Args:
        status: HTTP status. 400 becomes 422 on the challenge's routes, as its protocol says.
        field: The field of the request that is to blame.
        code: What went wrong, in OpenAI's words.
    """

    def __init__(self, status: int, message: str, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.field, self.code = status, field, code


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


def openai_error(error: Refused) -> dict[str, Any]:
    kind = ERROR_TYPES.get(error.status, "invalid_request_error")
    return {"error": {"message": str(error), "type": kind, "param": error.field, "code": error.code}}


def refusal(path: str, error: Refused) -> JSONResponse:
    """The answer to a request to `path`."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(error.status)
    if path.startswith("/v1/"):
        return JSONResponse(openai_error(error), error.status, headers)
    detail = {"loc": ["body", *([error.field] if error.field else [])], "msg": str(error), "type": error.code or "value_error"}
    return JSONResponse({"detail": [detail]}, 422 if error.status == 400 else error.status, headers)


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


def add_refusals(app: FastAPI) -> None:
    """Have the app tell all that it refuses in the shape of the API."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return refusal(request.url.path, error)

    @app.exception_handler(HTTPException)
    async def by_framework(request: Request, error: HTTPException) -> JSONResponse:
        code = "not_found" if error.status_code == 404 else None
        return refusal(request.url.path, Refused(error.status_code, str(error.detail), code=code))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # Without the value that was sent, which FastAPI would repeat: it may be NaN, which is no JSON.
        mistakes = [{name: e[name] for name in ("loc", "msg", "type")} for e in error.errors()]
        if not request.url.path.startswith("/v1/"):
            return JSONResponse({"detail": mistakes}, 422)
        if mistakes[0]["type"] == "json_invalid":
            return refusal(request.url.path, Refused(400, "the body is not JSON", code="invalid_value"))
        places = [".".join(map(str, e["loc"][1:])) for e in mistakes]  # without "body"
        told = [f"{place}: {e['msg']}" for place, e in zip(places, mistakes, strict=True)]
        return refusal(request.url.path, Refused(400, "; ".join(told[:5]), places[0] or None, "invalid_value"))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:  # starlette logs it
        return refusal(request.url.path, Refused(500, "the server failed to answer; its log says why", code="server_error"))
