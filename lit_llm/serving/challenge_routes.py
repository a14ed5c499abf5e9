"""The routes of the NeurIPS 2023 LLM Efficiency Challenge: /process, /tokenize and /decode."""

import asyncio
import functools
import random
import time
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from lit_llm.generation.generate import encode_prompt
from lit_llm.generation.sampling import Sampling, usable
from lit_llm.serving.engine import Engine, Job, Token
from lit_llm.serving.errors import Refused
from lit_llm.serving.limits import Stops, Text, check_scores
from lit_llm.serving.response import Answers, collect, json_response, prompt_tokens
from lit_llm.text.ending import raw_ending
from lit_llm.text.stream import candidate_text

LOWEST = torch.finfo(torch.float32).min  # JSON has no infinity


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
    stop_sequences: Stops = []


class ProcessToken(BaseModel):
    text: str
    logprob: float
    top_logprob: dict[str, float]


class ProcessResponse(BaseModel):
    text: str
    tokens: list[ProcessToken]
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


def challenge_routes(engine: Engine, max_new_tokens: int) -> APIRouter:
    """The routes, which answer through the engine."""
    router, tokenizer = APIRouter(), engine.tokenizer
    text_of = functools.cache(candidate_text(tokenizer))

    @router.post("/process", response_model=ProcessResponse)
    async def process(asked: ProcessRequest, request: Request) -> Response:
        start = time.perf_counter()
        job = await asyncio.to_thread(_job, engine, asked, max_new_tokens)
        (chunks,) = await collect(request, Answers(engine, [job]))

        def write() -> Response:
            text, tokens = "".join(chunk.text for chunk in chunks), [token for chunk in chunks for token in chunk.tokens]
            if asked.echo_prompt:
                text = asked.prompt + text
                tokens = prompt_tokens(tokenizer, job.prompt, asked.prompt, chunks[0].prompt_scores) + tokens
            total = sum(max(token.score.log_prob, LOWEST) for token in tokens)
            head = {"text": text, "logprob": total, "request_time": time.perf_counter() - start}
            return json_response(head, "tokens", (as_json(token) for token in tokens))

        return await asyncio.to_thread(write)

    def as_json(token: Token) -> dict[str, Any]:
        top: dict[str, float] = {}
        for text, log_prob in token.top(text_of):
            top.setdefault(text, max(log_prob, LOWEST))
        return ProcessToken(text=token.text, logprob=max(token.score.log_prob, LOWEST), top_logprob=top).model_dump()

    @router.post("/tokenize")
    async def tokenize(asked: TokenizeRequest) -> TokenizeResponse:
        start = time.perf_counter()
        tokens = await asyncio.to_thread(tokenizer.encode, asked.text)
        tokens = tokens[: asked.max_length] if asked.truncation else tokens
        return TokenizeResponse(tokens=tokens, request_time=time.perf_counter() - start)

    @router.post("/decode")
    async def decode(asked: DecodeRequest) -> DecodeResponse:
        start = time.perf_counter()
        text = await asyncio.to_thread(tokenizer.decode, asked.tokens)
        return DecodeResponse(text=text, request_time=time.perf_counter() - start)

    return router


def _job(engine: Engine, asked: ProcessRequest, max_new_tokens: int) -> Job:
    try:
        prompt = encode_prompt(engine.tokenizer, asked.prompt)
    except ValueError as error:
        raise Refused(400, str(error), "prompt") from error
    n_new, room = asked.max_new_tokens, engine.max_length
    if n_new > max_new_tokens:
        raise Refused(400, f"{n_new} is above this server's limit of {max_new_tokens}", "max_new_tokens")
    if len(prompt) + n_new > room:
        raise Refused(400, f"{len(prompt)} tokens and {n_new} new ones exceed the context of {room}", "prompt")
    sampling = Sampling(
        temperature=usable(asked.temperature), top_k=asked.top_k, top_p=asked.top_p,
        seed=random.getrandbits(63) if asked.seed is None else asked.seed,
    )  # fmt: skip
    echo = bool(asked.echo_prompt)
    check_scores(n_new + len(prompt) * echo, asked.top_k_per_token, "top_k_per_token")
    until = raw_ending(engine.tokenizer).with_strings(asked.stop_sequences)
    return Job(prompt, n_new, sampling, until, n_top=asked.top_k_per_token, score_prompt=echo)
