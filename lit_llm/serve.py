"""HTTP server with the routes of the NeurIPS 2023 LLM Efficiency Challenge."""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, Field

from lit_llm.args.generate import ServeArgs
from lit_llm.complete import load_args
from lit_llm.generate import TokenScore, encode_prompt, generate, prompt_scores
from lit_llm.model import GPT
from lit_llm.text_stream import earliest
from lit_llm.tokenizer import Tokenizer

GREEDY = 1e-5  # HELM sends a temperature of 1e-7 where it means 0
WINDOW = 16  # tokens before one that decide how it is written


def _unicode(text: str) -> str:
    text.encode()  # JSON can hold half of a surrogate pair, which is no text: a ValueError
    return text


Text = Annotated[str, AfterValidator(_unicode)]


class ProcessRequest(BaseModel):
    """Fields that are not listed are ignored: HELM sends some."""

    prompt: Text
    num_samples: int = Field(1, ge=1, le=1)  # the answer has room for one text
    max_new_tokens: int = Field(50, ge=0)
    top_k: int = Field(200, ge=1)
    temperature: float = Field(0.8, ge=0, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, lt=2**63)
    echo_prompt: bool | None = None
    top_p: float = Field(1.0, gt=0, le=1)
    top_k_per_token: int = Field(1, ge=0, le=1000)  # candidates to report, no cut-off
    stop_sequences: list[Text] = []


class Token(BaseModel):
    text: str
    logprob: float
    top_logprob: dict[str, float]


class ProcessResponse(BaseModel):
    text: str
    tokens: list[Token]
    logprob: float
    request_time: float


class TokenizeRequest(BaseModel):
    text: Text
    truncation: bool = True
    max_length: int = Field(2048, ge=0)


class TokenizeResponse(BaseModel):
    tokens: list[int]
    request_time: float


class DecodeRequest(BaseModel):
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]


class DecodeResponse(BaseModel):
    text: str
    request_time: float


class UnfitError(ValueError):
    """A request that is well formed but cannot be served; `field` is to blame."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def process(model: GPT, tokenizer: Tokenizer, request: ProcessRequest, max_new_tokens: int) -> tuple[str, list[Token]]:
    """Text and tokens that answer a request. Raises UnfitError if it does not fit into the context."""
    try:
        prompt = encode_prompt(tokenizer, request.prompt)
    except ValueError as error:
        raise UnfitError("prompt", str(error)) from error
    n_new, context = request.max_new_tokens, model.config.block_size
    if n_new > max_new_tokens:
        raise UnfitError("max_new_tokens", f"{n_new} is above this server's limit of {max_new_tokens}")
    if len(prompt) + n_new > context:
        raise UnfitError("prompt", f"{len(prompt)} tokens and {n_new} new ones exceed the context of {context}")
    text, tokens = "", []
    if request.echo_prompt:
        text = request.prompt
        scores = [TokenScore(0.0, {}), *prompt_scores(model, prompt, request.top_k_per_token)]
        tokens = _tokens(tokenizer, pieces(tokenizer, prompt, text), scores)
    if n_new:
        greedy = request.temperature <= GREEDY
        (found,) = generate(
            model, tokenizer, [prompt], max_new_tokens=n_new, temperature=0.0 if greedy else request.temperature,
            top_k=request.top_k, top_p=request.top_p, stop=[s for s in request.stop_sequences if s],
            seed=random.getrandbits(63) if request.seed is None else request.seed, n_top=request.top_k_per_token,
        )  # fmt: skip
        before = prompt[-WINDOW:]  # a continuation keeps its leading space only behind other tokens
        new = tokenizer.decode(before + found.ids)[len(tokenizer.decode(before)) :]
        cut = earliest(new, [s for s in request.stop_sequences if s])
        new_pieces = pieces(tokenizer, found.ids, new, before)
        tokens += _tokens(tokenizer, _up_to(new_pieces, cut), found.scores)
        text += new[:cut]
    return text, tokens


def pieces(tokenizer: Tokenizer, ids: Sequence[int], text: str, before: Sequence[int] = ()) -> list[str]:
    """What each token contributes to `text`, which they make up behind the tokens `before`; joined they are `text`.

    A character of several tokens belongs to its last. Tokens that a special token or the tokenizer's normalisation keep out
    of the text are "".
    """
    all_ids, found, done = [*before, *ids], [], 0
    for i in range(len(before), len(all_ids)):
        start = max(0, i - WINDOW)
        old, new = tokenizer.decode(all_ids[start:i]), tokenizer.decode(all_ids[start : i + 1])
        while old.endswith("\ufffd"):
            old = old[:-1]
        piece = "" if new.endswith("\ufffd") else new[len(old) :]
        if not text.startswith(piece, done):  # what is decoded is not what was encoded
            piece = ""
        found.append(piece)
        done += len(piece)
    if found:
        found[-1] += text[done:]
    return found


def _up_to(parts: Sequence[str], end: int | None) -> list[str]:
    """The pieces up to the character `end`; one that it divides loses what follows."""
    if end is None:
        return list(parts)
    kept, start = [], 0
    for part in parts:
        if start >= end:
            break
        kept.append(part[: end - start])
        start += len(part)
    return kept


def _tokens(tokenizer: Tokenizer, parts: Sequence[str], scores: Sequence[TokenScore]) -> list[Token]:
    anchor = tokenizer.encode("a", bos=False)  # a token alone would lose its leading space
    skipped = len(tokenizer.decode(anchor))
    lowest = torch.finfo(torch.float32).min  # JSON has no infinity
    tokens = []
    for text, score in zip(parts, scores, strict=False):  # a stop sequence cuts pieces off, not scores
        top: dict[str, float] = {}
        for token, log_prob in score.top.items():
            top.setdefault(tokenizer.decode([*anchor, token])[skipped:], max(log_prob, lowest))
        tokens.append(Token(text=text, logprob=max(score.log_prob, lowest), top_logprob=top))
    return tokens


def make_app(model: GPT, tokenizer: Tokenizer, args: ServeArgs) -> FastAPI:
    """The server. One thread of its own computes, a request after the other, while the event loop answers the rest."""
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        worker.shutdown(cancel_futures=True)

    app = FastAPI(title="lit_llm", lifespan=lifespan)
    app.add_middleware(BodyLimit, max_size=args.max_body_size)

    async def aside(function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)

    async def compute(function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(worker, function, *arguments)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/process")
    async def process_route(request: ProcessRequest) -> ProcessResponse:
        start = time.perf_counter()
        text, tokens = await compute(process, model, tokenizer, request, args.max_new_tokens)
        total = sum(token.logprob for token in tokens)
        return ProcessResponse(text=text, tokens=tokens, logprob=total, request_time=time.perf_counter() - start)

    @app.post("/tokenize")
    async def tokenize_route(request: TokenizeRequest) -> TokenizeResponse:
        start = time.perf_counter()
        tokens = await aside(tokenizer.encode, request.text)
        tokens = tokens[: request.max_length] if request.truncation else tokens
        return TokenizeResponse(tokens=tokens, request_time=time.perf_counter() - start)

    @app.post("/decode")
    async def decode_route(request: DecodeRequest) -> DecodeResponse:
        start = time.perf_counter()
        text = await aside(tokenizer.decode, request.tokens)
        return DecodeResponse(text=text, request_time=time.perf_counter() - start)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # Not the value that was sent, as FastAPI does: it may be NaN, which is no JSON.
        return _refusal([{name: e[name] for name in ("loc", "msg", "type")} for e in error.errors()])

    @app.exception_handler(UnfitError)
    async def unfit(request: Request, error: UnfitError) -> JSONResponse:
        return _refusal([{"loc": ["body", error.field], "msg": str(error), "type": "value_error"}])

    return app


def _refusal(detail: list[dict[str, Any]], status: int = 422) -> JSONResponse:
    return JSONResponse({"detail": detail}, status)


class BodyLimit:
    """Answers requests with a longer body than `max_size` bytes by 413, without reading the rest."""

    def __init__(self, app: Callable[..., Awaitable[None]], max_size: int) -> None:
        self.app, self.max_size = app, max_size

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        messages, size, more = [], 0, True
        while more:
            messages.append(await receive())
            size += len(messages[-1].get("body", b""))
            more = messages[-1].get("more_body", False)
            if size > self.max_size:
                detail = {"loc": ["body"], "msg": f"longer than {self.max_size} bytes", "type": "too_long"}
                return await _refusal([detail], 413)(scope, receive, send)
        waiting = iter(messages)

        async def replay() -> Any:
            message = next(waiting, None)
            return await receive() if message is None else message

        await self.app(scope, replay, send)


def serve(args: ServeArgs) -> None:
    """Load the model and answer requests until SIGINT or SIGTERM; a request in progress is finished."""
    model, tokenizer, _ = load_args(args)
    print(f"serving on http://{args.host}:{args.port}", file=sys.stderr)
    uvicorn.run(make_app(model, tokenizer, args), host=args.host, port=args.port, log_level="warning")
