"""Errors of the server, in the format of the API that was called."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lit_llm.serving.engine import ClosedError, QueueFullError

ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
MAX_MISTAKES = 5
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 408: {"Connection": "close"}, 429: {"Retry-After": "1"}}


class RequestError(Exception):
    """A request that the server does not answer. Each API has its own format for it.

    Args:
        status: HTTP status. 400 becomes 422 on the challenge's routes, as its protocol requires.
        field: Field of the request that caused the error.
        code: Code in OpenAI's API.
    """

    def __init__(self, status: int, message: str, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.field, self.code = status, field, code


def as_request_error(error: Exception) -> RequestError:
    """Return the error that a client sees. Details of an internal fault are in the server's log only."""
    match error:
        case RequestError():
            return error
        case RecursionError():
            return RequestError(400, "the body is nested too deeply", code="invalid_value")
        case QueueFullError():
            return RequestError(429, str(error), code="queue_full")
        case ClosedError():
            return RequestError(503, "the server is shutting down", code="shutting_down")
        case HTTPException():
            return RequestError(error.status_code, str(error.detail), code="not_found" if error.status_code == 404 else None)
    return RequestError(500, "the server failed to answer; its log has the error", code="server_error")


def openai_error(error: RequestError) -> dict[str, Any]:
    """Return the body of an error in OpenAI's API."""
    kind = ERROR_TYPES.get(error.status, "invalid_request_error")
    return {"error": {"message": _valid(str(error)), "type": kind, "param": _valid(error.field), "code": error.code}}


def _valid(text: str | None) -> str | None:
    """Replace unpaired surrogates, which a request may contain, and shorten a long text."""
    return text and text[:1000].encode(errors="replace").decode()


def error_response(path: str, error: RequestError) -> JSONResponse:
    """Return the response to a request to `path`."""
    headers = HEADERS.get(error.status)
    if path.startswith("/v1/"):
        return JSONResponse(openai_error(error), error.status, headers)
    where = ["body", *([error.field] if error.field else [])]
    detail = {"loc": where, "msg": _valid(str(error)), "type": error.code or "value_error"}
    return JSONResponse({"detail": [detail]}, 422 if error.status == 400 else error.status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Make the app report all errors in the format of the API that was called."""

    async def respond(request: Request, error: Exception) -> JSONResponse:
        return error_response(request.url.path, as_request_error(error))

    for kind in (RequestError, QueueFullError, ClosedError, HTTPException, Exception):
        app.add_exception_handler(kind, respond)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # Without the value that was sent, which FastAPI would repeat: NaN, for example, is not valid JSON.
        mistakes = [
            {"loc": [x if isinstance(x, int) else _valid(x) for x in e["loc"]], "msg": _valid(e["msg"]), "type": e["type"]}
            for e in error.errors()[:MAX_MISTAKES]
        ]
        if not request.url.path.startswith("/v1/"):
            return JSONResponse({"detail": mistakes}, 422)
        if mistakes[0]["type"] == "json_invalid":
            return error_response(request.url.path, RequestError(400, "the body is not JSON", code="invalid_value"))
        places = [".".join(map(str, e["loc"][1:])) for e in mistakes]  # without "body"
        message = "; ".join(f"{place}: {e['msg']}" for place, e in zip(places, mistakes, strict=True))
        return error_response(request.url.path, RequestError(400, message, places[0] or None, "invalid_value"))
