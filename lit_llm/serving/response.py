"""From the engine's thread to the event loop and to JSON: the chunks of a request, for as long as its client is there."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from lit_llm.generation.decode import TokenScore
from lit_llm.serving.engine import Chunk, Engine, Job, Token
from lit_llm.serving.errors import Refused
from lit_llm.text.stream import pieces
from lit_llm.text.tokenizer import Tokenizer


class Answers:
    """What the engine makes of jobs, as pairs of a job's place and a chunk, as they come.

    Nobody waits for the client: what it has not read yet waits here, which is at most the whole answer. Raises Refused where a
    job ended because of the server.
    """

    def __init__(self, engine: Engine, jobs: Sequence[Job]) -> None:
        self._engine, self._queue = engine, asyncio.Queue[tuple[int, Chunk]]()
        loop = asyncio.get_running_loop()

        def emit(i: int, chunk: Chunk) -> None:
            with suppress(RuntimeError):  # the event loop was closed: nobody is there to read it
                loop.call_soon_threadsafe(self._queue.put_nowait, (i, chunk))

        self._tasks = engine.submit(jobs, emit)

    def cancel(self) -> None:
        self._engine.cancel(self._tasks)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Chunk]]:
        left = len(self._tasks)
        while left:
            i, chunk = await self._queue.get()
            if chunk.finish == "timeout":
                raise Refused(
                    503, f"the answer took longer than this server's limit of {self._engine.timeout:g} s", None, "timeout"
                )
            if chunk.finish == "closed":
                raise Refused(503, "the server is shutting down", code="shutting_down")
            if chunk.finish == "error":
                raise Refused(500, "the server failed to answer; its log says why", code="server_error")
            yield i, chunk
            left -= chunk.finish is not None


async def collect(request: Request, answers: Answers) -> list[list[Chunk]]:
    """All chunks of each job. Raises Refused, and frees their places, when the client leaves."""
    chunks: dict[int, list[Chunk]] = {}

    async def read() -> None:
        async for i, chunk in answers:
            chunks.setdefault(i, []).append(chunk)

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    reading, leaving = asyncio.create_task(read()), asyncio.create_task(leave())
    try:
        await asyncio.wait((reading, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise Refused(499, "the client has left")
        await reading
    finally:
        reading.cancel()
        leaving.cancel()
        answers.cancel()
    return [chunks[i] for i in sorted(chunks)]


class EventStream(StreamingResponse):
    """Server-sent events made from `answers`, which are given up when the client leaves, even before the first event."""

    def __init__(self, events: AsyncIterator[str], answers: Answers) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.answers = answers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.answers.cancel()


def prompt_tokens(tokenizer: Tokenizer, prompt: Sequence[int], text: str, scores: Sequence[TokenScore]) -> list[Token]:
    """The tokens of an echoed prompt. The first, before which nothing stands, has log-probability 0 and none beside it."""
    parts = zip(prompt, pieces(tokenizer, prompt, text), [TokenScore(0.0, {}), *scores], strict=True)
    return [Token(i, piece, score) for i, piece, score in parts]


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def json_response(head: Mapping[str, Any], name: str, items: Iterable[Any]) -> Response:
    """`head` with a list under this name. For a long one, in a thread: the event loop has its turns between the items."""
    written = ",".join(map(to_json, items))
    return Response(f'{to_json(head)[:-1]},"{name}":[{written}]}}', media_type="application/json")
