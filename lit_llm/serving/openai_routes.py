"""OpenAI's routes: /v1/models, /v1/completions and /v1/chat/completions, as a whole or as server-sent events."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lit_llm.generation.generate import encode_prompt
from lit_llm.serving.chat_prompt import chat_prompt
from lit_llm.serving.engine import Chunk, Engine, Job, ScoredToken
from lit_llm.serving.errors import RequestError, openai_error
from lit_llm.serving.limits import blaming, check_context, check_n_characters, check_n_log_probs, check_n_new
from lit_llm.serving.openai_requests import ChatRequest, CommonRequest, CompletionRequest, Json
from lit_llm.serving.preparation import Preparation
from lit_llm.serving.response import ChunkStream, EventStreamResponse, collect, json_response, prompt_tokens, to_json
from lit_llm.serving.token_names import Name, TokenNames, by_name
from lit_llm.text.ending import Ending, ending, raw_ending

COMPLETION_TOKENS = 16  # OpenAI's default for completions; the default of a chat is the server's limit
LOWEST = -9999.0  # OpenAI's value for a log-probability of minus infinity, which JSON does not have
INVALID, TOO_LONG = "invalid_value", "context_length_exceeded"  # OpenAI's codes


@dataclass(frozen=True)
class Served:
    """The model behind the routes.

    Args:
        name: Model name, which requests must contain.
        style: Prompt style of conversations.
        finetuned: The model was finetuned in this style.
        max_new_tokens: Most tokens of an answer.
    """

    engine: Engine
    preparation: Preparation
    names: TokenNames
    name: str
    style: str
    finetuned: bool
    max_new_tokens: int

    @cached_property
    def ending(self) -> Ending:
        return ending(self.style, self.engine.tokenizer)


def openai_routes(served: Served) -> APIRouter:
    """Return the routes."""
    router, engine, name = APIRouter(prefix="/v1"), served.engine, served.name
    about = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "lit_llm"}

    def check_model(requested: str) -> None:
        if requested != name:
            message = f"the model {requested!r} is not served here; this server has {name!r}"
            raise RequestError(404, message, "model", "model_not_found")

    def check(body: CommonRequest, n_prompts: int) -> None:
        body.check_supported()
        check_model(body.model)
        if (n_answers := n_prompts * (body.n or 1)) > engine.capacity:
            message = f"{n_answers} answers are more than the {engine.capacity} that this server runs and queues"
            raise RequestError(400, message, "n" if n_prompts == 1 else "prompt", INVALID)

    @router.get("/models")
    async def models() -> Json:
        return {"object": "list", "data": [about]}

    @router.get("/models/{requested:path}")
    async def model(requested: str) -> Json:
        check_model(requested)
        return about

    @router.post("/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        check(body, 1)
        n_bytes = sum(len(message.content or "") for message in body.messages)
        jobs, deadline = await served.preparation.run(n_bytes, lambda: _chat_jobs(served, body))
        return await _respond(request, ChunkStream(engine, jobs, deadline), body, jobs, ChatFormat(served.names, body))

    @router.post("/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        check(body, len(body.prompt))
        n_bytes = sum(map(len, body.prompt))
        jobs, deadline = await served.preparation.run(n_bytes, lambda: _completion_jobs(served, body))
        return await _respond(request, ChunkStream(engine, jobs, deadline), body, jobs, CompletionFormat(served, body, jobs))

    return router


def _chat_jobs(served: Served, body: ChatRequest) -> list[Job]:
    engine, max_new_tokens, continues = served.engine, served.max_new_tokens, bool(body.continue_final_message)
    check_n_characters(sum(len(message.content or "") for message in body.messages), engine.max_length, "messages", TOO_LONG)
    with blaming("messages", INVALID):
        prompt = chat_prompt(
            served.style, engine.tokenizer, [message.turn() for message in body.messages], finetuned=served.finetuned,
            opens=body.add_generation_prompt is not False, continues=continues, variables=body.chat_template_kwargs or {},
            longest=engine.max_length,
        )  # fmt: skip
        until = served.ending.with_strings(body.stop)
    n_new = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if n_new is None:
        n_new = max(1, min(max_new_tokens, engine.max_length - len(prompt)))
    _check_length(engine, "messages", len(prompt), n_new, max_new_tokens)
    n_top = (body.top_logprobs or 0) if body.logprobs else None
    if n_top is not None:
        check_n_log_probs((body.n or 1) * n_new, n_top, "top_logprobs")
    return [Job(prompt, n_new, sampling, until, n_top, continues=continues) for sampling in body.samplings()]


def _completion_jobs(served: Served, body: CompletionRequest) -> list[Job]:
    engine, max_new_tokens = served.engine, served.max_new_tokens
    until = raw_ending(engine.tokenizer).with_strings(body.stop)
    n_new = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    score_prompt = bool(body.echo) and body.logprobs is not None
    jobs = []
    for prompt in body.prompt:
        if isinstance(prompt, str):
            check_n_characters(len(prompt), engine.max_length, "prompt", TOO_LONG)
        with blaming("prompt", INVALID):
            ids = encode_prompt(engine.tokenizer, prompt) if isinstance(prompt, str) else prompt
        if not ids or any(not 0 <= i < engine.model.config.vocab_size for i in ids):
            raise RequestError(400, "the prompt is empty, or one of its tokens does not exist", "prompt", INVALID)
        _check_length(engine, "prompt", len(ids), n_new, max_new_tokens)
        jobs += [  # a prompt is scored once
            Job(ids, n_new, sampling, until, body.logprobs, score_prompt and i == 0)
            for i, sampling in enumerate(body.samplings())
        ]
    if body.logprobs is not None:
        check_n_log_probs(sum(n_new + len(job.prompt) * score_prompt for job in jobs), body.logprobs, "logprobs")
    return jobs


def _check_length(engine: Engine, field: str, n_prompt: int, n_new: int, max_new_tokens: int) -> None:
    """Raise RequestError for the prompt's field if not even one token fits after it, else for `max_tokens`."""
    check_context(n_prompt, min(n_new, 1), engine.max_length, field, TOO_LONG)
    check_context(n_prompt, n_new, engine.max_length, "max_tokens", TOO_LONG)
    check_n_new(n_new, max_new_tokens, "max_tokens", INVALID)


class ChatFormat:
    """Choices of chat completions, in JSON."""

    chunk_object, object, id_prefix = "chat.completion.chunk", "chat.completion", "chatcmpl"

    def __init__(self, names: TokenNames, body: ChatRequest) -> None:
        self._names, self._scored = names, bool(body.logprobs)

    def first_delta(self, i: int) -> Json | None:
        return {"index": i, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def delta(self, i: int, chunk: Chunk) -> Json:
        return self._choice(i, "delta", {"content": chunk.text} if chunk.text else {}, chunk)

    def choice(self, i: int, answer: Chunk) -> Json:
        return self._choice(i, "message", {"role": "assistant", "content": answer.text, "refusal": None}, answer)

    def _choice(self, i: int, name: str, value: Json, chunk: Chunk) -> Json:
        logprobs = {"content": [*map(self._logprob, chunk.tokens)], "refusal": None} if self._scored else None
        return {"index": i, name: value, "logprobs": logprobs, "finish_reason": chunk.finish}

    def _logprob(self, token: ScoredToken) -> Json:
        def entry(name: Name, log_prob: float) -> Json:
            return {"token": name.text, "logprob": max(log_prob, LOWEST), "bytes": name.data and list(name.data)}

        top = [entry(name, log_prob) for _, name, log_prob in self._names.top(token)]
        return {**entry(self._names.of(token), token.score.log_prob), "top_logprobs": top}


class CompletionFormat:
    """Choices of completions, in JSON. With `echo` the prompt precedes the first chunk of each choice."""

    chunk_object = object = "text_completion"
    id_prefix = "cmpl"

    def __init__(self, served: Served, body: CompletionRequest, jobs: Sequence[Job]) -> None:
        self._names, self._tokenizer, self._body, self._jobs = served.names, served.engine.tokenizer, body, jobs
        self._prompts: dict[int, tuple[str, list[ScoredToken]]] = {}  # text and tokens of each prompt, written once
        self._length = dict[int, int]()  # characters of each choice's tokens so far

    def first_delta(self, i: int) -> Json | None:
        return None

    def delta(self, i: int, chunk: Chunk) -> Json:
        text, tokens, start = chunk.text, list(chunk.tokens), self._length.get(i, 0)
        if echo := self._body.echo and i not in self._length:
            prompt, before = self._prompt(i, chunk)
            text, tokens = prompt + text, before + tokens
        self._length[i] = start + sum(len(token.text) for token in tokens)
        logprobs = None if self._body.logprobs is None else self._logprobs(tokens, start)
        if logprobs is not None and echo:
            logprobs["token_logprobs"][0] = logprobs["top_logprobs"][0] = None  # nothing predicts the first token
        return {"index": i, "text": text, "logprobs": logprobs, "finish_reason": chunk.finish}

    choice = delta

    def _logprobs(self, tokens: Sequence[ScoredToken], start: int) -> Json:
        """Return parallel lists for tokens. The first begins at character `start` of the text."""
        tops = [by_name(self._names.top(token)) for token in tokens]
        return {
            "tokens": [self._names.of(token).text for token in tokens],
            "token_logprobs": [max(token.score.log_prob, LOWEST) for token in tokens],
            "top_logprobs": [{text: max(log_prob, LOWEST) for text, log_prob in top.items()} for top in tops],
            "text_offset": list(accumulate((len(token.text) for token in tokens), initial=start))[:-1],
        }

    def _prompt(self, i: int, chunk: Chunk) -> tuple[str, list[ScoredToken]]:
        """Return a choice's prompt, and its tokens if they are scored, which is done by the first choice of each prompt."""
        at = i // (self._body.n or 1)
        if at not in self._prompts:
            prompt, tokenizer = self._body.prompt[at], self._tokenizer
            text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
            scored = self._body.logprobs is not None
            tokens = prompt_tokens(tokenizer, self._jobs[i].prompt, text, chunk.prompt_scores) if scored else []
            self._prompts[at] = text, tokens
        return self._prompts[at]


async def _respond(
    request: Request, stream: ChunkStream, body: CommonRequest, jobs: Sequence[Job], form: ChatFormat | CompletionFormat
) -> Response:
    """Return the answers of the jobs as JSON or as an event stream."""
    head = {"id": f"{form.id_prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
    n_prompt = sum(len(job.prompt) for job in jobs[:: body.n or 1])
    if body.stream:
        with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        head |= {"object": form.chunk_object, **({"usage": None} if with_usage else {})}
        events = _events(stream, len(jobs), form, head, n_prompt if with_usage else None)
        return EventStreamResponse(events, stream)
    answers = await collect(request, stream)
    head |= {"object": form.object, "usage": _usage(n_prompt, sum(answer.n_new for answer in answers))}
    choices = (form.choice(i, answer) for i, answer in enumerate(answers))
    return await asyncio.to_thread(json_response, head, "choices", choices)


async def _events(
    stream: ChunkStream, n_choices: int, form: ChatFormat | CompletionFormat, head: Json, n_prompt: int | None
) -> AsyncIterator[str]:
    """Yield server-sent events. If `n_prompt` is given, the usage precedes the end mark."""
    for i in range(n_choices):
        if (delta := form.first_delta(i)) is not None:
            yield _event({**head, "choices": [delta]})

    def event(i: int, chunk: Chunk) -> str:
        return _event({**head, "choices": [form.delta(i, chunk)]})

    n_new, started = 0, set[int]()
    try:
        async for i, chunk in stream:  # in a thread if the event may contain a prompt
            yield event(i, chunk) if i in started else await asyncio.to_thread(event, i, chunk)
            started.add(i)
            n_new += chunk.n_new if chunk.finish else 0
    except RequestError as error:  # the status was sent before
        yield _event(openai_error(error))
        return
    if n_prompt is not None:
        yield _event({**head, "choices": [], "usage": _usage(n_prompt, n_new)})
    yield "data: [DONE]\n\n"


def _event(data: Json) -> str:
    return f"data: {to_json(data)}\n\n"


def _usage(n_prompt: int, n_new: int) -> Json:
    return {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}
