"""The routes of the NeurIPS 2023 LLM Efficiency Challenge: /process, /tokenize and /decode."""

import asyncio
import random
import time
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from lit_llm.generation.generate import encode_prompt
from lit_llm.generation.sampling import Sampling, usable
from lit_llm.serving.engine import Engine, Job, ScoredToken
from lit_llm.serving.limits import (
    StopSequences,
    UnicodeStr,
    blaming,
    check_context,
    check_n_characters,
    check_n_log_probs,
    check_n_new,
)
from lit_llm.serving.preparation import Preparation
from lit_llm.serving.response import ChunkStream, collect, json_response, prompt_tokens
from lit_llm.serving.token_names import TokenNames, by_name
from lit_llm.text.ending import raw_ending

LOWEST = torch.finfo(torch.float32).min  # JSON has no infinity


class ProcessRequest(BaseModel):
    """Fields that are not listed are ignored: HELM sends some."""

    prompt: UnicodeStr
    num_samples: int = Field(1, ge=1, le=1)  # the response holds one text
    max_new_tokens: int = Field(50, ge=0)
    top_k: int = Field(200, ge=1)
    temperature: float = Field(0.8, ge=0, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, lt=2**63)
    echo_prompt: bool | None = None
    top_p: float = Field(1.0, gt=0, le=1)
    top_k_per_token: int = Field(1, ge=0, le=1000)  # candidates to report; does not change the sampling
    stop_sequences: StopSequences = []


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
    text: UnicodeStr
    truncation: bool = True
    max_length: int = Field(2048, ge=0)


class TokenizeResponse(BaseModel):
    tokens: list[int]
    request_time: float


class DecodeRequest(BaseModel):
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(fail_fast=True)]


class DecodeResponse(BaseModel):
    text: str
    request_time: float


def challenge_routes(engine: Engine, preparation: Preparation, names: TokenNames, max_new_tokens: int) -> APIRouter:
    """Return the routes, which answer with the engine. `max_new_tokens` is the most that a request may ask for."""
    router, tokenizer = APIRouter(), engine.tokenizer

    @router.post("/process", response_model=ProcessResponse)
    async def process(body: ProcessRequest, request: Request) -> Response:
        start = time.perf_counter()
        (job,), deadline = await preparation.run(len(body.prompt), lambda: [_job(engine, body, max_new_tokens)])
        (answer,) = await collect(request, ChunkStream(engine, [job], deadline))

        def write() -> Response:
            text, tokens = answer.text, list(answer.tokens)
            if body.echo_prompt:
                text = body.prompt + text
                tokens = prompt_tokens(tokenizer, job.prompt, body.prompt, answer.prompt_scores) + tokens
            total = sum(max(token.score.log_prob, LOWEST) for token in tokens)
            head = {"text": text, "logprob": total, "request_time": time.perf_counter() - start}
            return json_response(head, "tokens", (as_json(token) for token in tokens))

        return await asyncio.to_thread(write)

    def as_json(token: ScoredToken) -> dict[str, Any]:
        top = {name: max(log_prob, LOWEST) for name, log_prob in by_name(names.top(token)).items()}
        return {"text": token.text, "logprob": max(token.score.log_prob, LOWEST), "top_logprob": top}

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenizeResponse:
        start = time.perf_counter()
        tokens, _ = await preparation.run(len(body.text), lambda: tokenizer.encode(body.text))
        tokens = tokens[: body.max_length] if body.truncation else tokens
        return TokenizeResponse(tokens=tokens, request_time=time.perf_counter() - start)

    @router.post("/decode")
    async def decode(body: DecodeRequest) -> DecodeResponse:
        start = time.perf_counter()
        text, _ = await preparation.run(4 * len(body.tokens), lambda: tokenizer.decode(body.tokens))
        return DecodeResponse(text=text, request_time=time.perf_counter() - start)

    return router


def _job(engine: Engine, body: ProcessRequest, max_new_tokens: int) -> Job:
    """Return the job of a request. Raises RequestError if the server's limits forbid it."""
    check_n_characters(len(body.prompt), engine.max_length, "prompt")
    with blaming("prompt"):
        prompt = encode_prompt(engine.tokenizer, body.prompt)
    check_n_new(body.max_new_tokens, max_new_tokens, "max_new_tokens")
    check_context(len(prompt), body.max_new_tokens, engine.max_length, "prompt")
    echo, n_top = bool(body.echo_prompt), body.top_k_per_token
    check_n_log_probs(body.max_new_tokens + len(prompt) * echo, n_top, "top_k_per_token")
    seed = random.getrandbits(63) if body.seed is None else body.seed
    sampling = Sampling(usable(body.temperature), body.top_k, body.top_p, seed=seed)
    until = raw_ending(engine.tokenizer).with_strings(body.stop_sequences)
    return Job(prompt, body.max_new_tokens, sampling, until, n_top, score_prompt=echo)
