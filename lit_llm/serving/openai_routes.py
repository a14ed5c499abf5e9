"""OpenAI's routes: /v1/models, /v1/completions and /v1/chat/completions, whole or as server-sent events."""

import asyncio
import functools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lit_llm.generation.generate import encode_prompt
from lit_llm.serving.engine import Chunk, Engine, Job, Token
from lit_llm.serving.errors import Refused, openai_error
from lit_llm.serving.limits import check_scores
from lit_llm.serving.openai_requests import ChatRequest, Common, CompletionRequest, Json, chat_logprobs, completion_logprobs
from lit_llm.serving.response import Answers, EventStream, collect, json_response, prompt_tokens, to_json
from lit_llm.text.conversation import check_messages, prompt_ids
from lit_llm.text.ending import ending, raw_ending
from lit_llm.text.stream import candidate_text
from lit_llm.text.tokenizer import Tokenizer

COMPLETION_TOKENS = 16  # OpenAI's default for completions; an answer in a chat may go on to the limit


def openai_routes(engine: Engine, name: str, style: str, max_new_tokens: int) -> APIRouter:
    """The routes, which answer through the engine.

    Args:
        name: The model's, which requests must give.
        style: Prompt style of conversations.
    """
    router, created = APIRouter(prefix="/v1"), int(time.time())
    about = {"id": name, "object": "model", "created": created, "owned_by": "lit_llm"}
    text_of = functools.cache(candidate_text(engine.tokenizer))

    def check(asked: Common, n_prompts: int) -> None:
        asked.check_supported()
        if asked.model != name:
            raise _unknown(asked.model, name)
        if (n_answers := n_prompts * (asked.n or 1)) > engine.capacity:
            message = f"{n_answers} answers are more than the {engine.capacity} that this server runs and lets wait"
            raise Refused(400, message, "n" if n_prompts == 1 else "prompt", "invalid_value")

    @router.get("/models")
    async def models() -> Json:
        return {"object": "list", "data": [about]}

    @router.get("/models/{asked:path}")
    async def model(asked: str) -> Json:
        if asked != name:
            raise _unknown(asked, name)
        return about

    @router.post("/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        check(asked, 1)
        jobs = await asyncio.to_thread(_chat_jobs, engine, asked, style, max_new_tokens)
        return await _answer(request, engine, asked, jobs, ChatWriter(text_of, bool(asked.logprobs)))

    @router.post("/completions")
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        check(asked, len(asked.prompt))
        jobs = await asyncio.to_thread(_completion_jobs, engine, asked, max_new_tokens)
        return await _answer(request, engine, asked, jobs, CompletionWriter(engine.tokenizer, text_of, asked, jobs))

    return router


def _unknown(asked: str, name: str) -> Refused:
    return Refused(404, f"the model {asked!r} is not served here; this server has {name!r}", "model", "model_not_found")


def _chat_jobs(engine: Engine, asked: ChatRequest, style: str, max_new_tokens: int) -> list[Job]:
    messages = asked.turns()
    try:
        check_messages([*messages, {"role": "assistant", "content": "an answer"}])
        prompt = prompt_ids(style, engine.tokenizer, messages)
        until = ending(style, engine.tokenizer).with_strings(asked.stop)
    except ValueError as error:
        raise Refused(400, str(error), "messages", "invalid_value") from error
    n_new = asked.limit()
    if n_new is None:
        n_new = max(1, min(max_new_tokens, engine.max_length - len(prompt)))
    _check_room(engine, "messages", len(prompt), n_new, max_new_tokens)
    n_top = (asked.top_logprobs or 0) if asked.logprobs else None
    if n_top is not None:
        check_scores((asked.n or 1) * n_new, n_top, "top_logprobs")
    return [Job(prompt, n_new, sampling, until, n_top, continues=False) for sampling in asked.samplings()]


def _completion_jobs(engine: Engine, asked: CompletionRequest, max_new_tokens: int) -> list[Job]:
    until = raw_ending(engine.tokenizer).with_strings(asked.stop)
    n_new = COMPLETION_TOKENS if asked.max_tokens is None else asked.max_tokens
    score_prompt = bool(asked.echo) and asked.logprobs is not None
    jobs = []
    for prompt in asked.prompt:
        try:
            ids = encode_prompt(engine.tokenizer, prompt) if isinstance(prompt, str) else prompt
        except ValueError as error:
            raise Refused(400, str(error), "prompt", "invalid_value") from error
        if not ids or any(not 0 <= i < engine.model.config.vocab_size for i in ids):
            raise Refused(400, "the prompt is empty, or one of its tokens does not exist", "prompt", "invalid_value")
        _check_room(engine, "prompt", len(ids), n_new, max_new_tokens)
        jobs += [  # a prompt is scored once
            Job(ids, n_new, sampling, until, asked.logprobs, score_prompt and i == 0)
            for i, sampling in enumerate(asked.samplings())
        ]
    if asked.logprobs is not None:
        check_scores(sum(n_new + len(job.prompt) * score_prompt for job in jobs), asked.logprobs, "logprobs")
    return jobs


def _check_room(engine: Engine, field: str, n_prompt: int, n_new: int, most: int) -> None:
    """Raises Refused if so many new tokens do not fit behind the prompt, or are more than the server allows."""
    room = engine.max_length
    if n_prompt + min(n_new, 1) > room:
        message = f"the prompt has {n_prompt} tokens, but prompt and answer together may have {room}"
        raise Refused(400, message, field, "context_length_exceeded")
    if n_prompt + n_new > room:
        message = f"a prompt of {n_prompt} tokens and {n_new} new ones exceed the context of {room}"
        raise Refused(400, message, "max_tokens", "context_length_exceeded")
    if n_new > most:
        raise Refused(400, f"{n_new} tokens are above this server's limit of {most}", "max_tokens", "invalid_value")


async def _answer(
    request: Request, engine: Engine, asked: Common, jobs: Sequence[Job], writer: "ChatWriter | CompletionWriter"
) -> Response:
    answers = Answers(engine, jobs)
    head = {"id": f"{writer.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": asked.model}
    n_prompt = sum(len(job.prompt) for job in jobs[:: asked.n or 1])
    if asked.stream:
        with_usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        head = {**head, "object": writer.kind, **({"usage": None} if with_usage else {})}
        return EventStream(_events(answers, len(jobs), writer, head, n_prompt if with_usage else None), answers)
    chunks = await collect(request, answers)
    head |= {"object": writer.whole_kind, "usage": _usage(n_prompt, sum(of_one[-1].n_new for of_one in chunks))}
    choices = (writer.whole(i, of_one) for i, of_one in enumerate(chunks))
    return await asyncio.to_thread(json_response, head, "choices", choices)


async def _events(
    answers: Answers, n_choices: int, writer: "ChatWriter | CompletionWriter", head: Json, n_prompt: int | None
) -> AsyncIterator[str]:
    """Server-sent events; with `n_prompt` one of the usage is the last but for the mark of the end."""
    for i in range(n_choices):
        if (opening := writer.opening(i)) is not None:
            yield _event({**head, "choices": [opening]})

    def event(i: int, chunk: Chunk) -> str:
        return _event({**head, "choices": [writer.part(i, chunk)]})

    n_new, begun = 0, set[int]()
    try:
        async for i, chunk in answers:
            yield event(i, chunk) if i in begun else await asyncio.to_thread(event, i, chunk)  # a prompt may stand in the first
            begun.add(i)
            n_new += chunk.n_new if chunk.finish else 0
    except Refused as error:  # the status is long sent
        yield _event(openai_error(error))
        return
    if n_prompt is not None:
        yield _event({**head, "choices": [], "usage": _usage(n_prompt, n_new)})
    yield "data: [DONE]\n\n"


def _event(data: Json) -> str:
    return f"data: {to_json(data)}\n\n"


def _usage(n_prompt: int, n_new: int) -> Json:
    return {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}


class ChatWriter:
    """How answers in a chat are written."""

    kind, whole_kind, prefix = "chat.completion.chunk", "chat.completion", "chatcmpl"

    def __init__(self, text_of: Callable[[int], str], scored: bool) -> None:
        self._text_of, self._scored = text_of, scored

    def opening(self, i: int) -> Json | None:
        return {"index": i, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def part(self, i: int, chunk: Chunk) -> Json:
        delta = {"content": chunk.text} if chunk.text else {}
        return {"index": i, "delta": delta, "logprobs": self._logprobs([chunk]), "finish_reason": chunk.finish}

    def whole(self, i: int, chunks: Sequence[Chunk]) -> Json:
        message = {"role": "assistant", "content": "".join(chunk.text for chunk in chunks), "refusal": None}
        return {"index": i, "message": message, "logprobs": self._logprobs(chunks), "finish_reason": chunks[-1].finish}

    def _logprobs(self, chunks: Sequence[Chunk]) -> Json | None:
        tokens = [token for chunk in chunks for token in chunk.tokens]
        return chat_logprobs(tokens, self._text_of) if self._scored else None


class CompletionWriter:
    """How completions are written. With `echo` the prompt stands before the first chunk of each."""

    kind = whole_kind = "text_completion"
    prefix = "cmpl"

    def __init__(
        self, tokenizer: Tokenizer, text_of: Callable[[int], str], asked: CompletionRequest, jobs: Sequence[Job]
    ) -> None:
        self._tokenizer, self._text_of, self._asked, self._jobs = tokenizer, text_of, asked, jobs
        self._to_echo = set(range(len(jobs))) if asked.echo else set()  # choices that have yet to begin with their prompts
        self._prompts: dict[int, tuple[str, list[Token]]] = {}  # text and tokens of those that were written
        self._length = [0] * len(jobs)  # characters of each choice's tokens so far

    def opening(self, i: int) -> Json | None:
        return None

    def part(self, i: int, chunk: Chunk) -> Json:
        return self.whole(i, [chunk])

    def whole(self, i: int, chunks: Sequence[Chunk]) -> Json:
        text, scored = "".join(chunk.text for chunk in chunks), self._asked.logprobs is not None
        tokens = [token for chunk in chunks for token in chunk.tokens]
        if echo := i in self._to_echo:
            self._to_echo.remove(i)
            prompt, before = self._prompt(i, chunks[0])
            text, tokens = prompt + text, before + tokens
        logprobs = completion_logprobs(tokens, self._length[i], self._text_of) if scored else None
        if logprobs is not None and echo:
            logprobs["token_logprobs"][0] = logprobs["top_logprobs"][0] = None  # nothing stands before it
        self._length[i] += sum(len(token.text) for token in tokens)
        return {"index": i, "text": text, "logprobs": logprobs, "finish_reason": chunks[-1].finish}

    def _prompt(self, i: int, chunk: Chunk) -> tuple[str, list[Token]]:
        """Text of a choice's prompt, and its tokens if they are scored: by the first of its choices, which begins first."""
        at = i // (self._asked.n or 1)
        if at not in self._prompts:
            prompt, ids = self._asked.prompt[at], self._jobs[i].prompt
            text = prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)
            scored = self._asked.logprobs is not None
            self._prompts[at] = text, prompt_tokens(self._tokenizer, ids, text, chunk.prompt_scores) if scored else []
        return self._prompts[at]
