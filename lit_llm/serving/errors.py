"""Errors of the server as OpenAI's API formats them."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

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
