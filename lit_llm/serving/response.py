"""From the engine's thread to the event loop and to JSON. A request's jobs are cancelled when its client disconnects."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from lit_llm.generation.decode import TokenScore
from lit_llm.serving.engine import Chunk, ClosedError, Engine, Job, ScoredToken
from lit_llm.serving.errors import RequestError, as_request_error
from lit_llm.text.stream import pieces
from lit_llm.text.tokenizer import Tokenizer


class ChunkStream:
    """Chunks of jobs as the engine emits them, as pairs of a job's index and a chunk.

    The engine does not wait for the client: chunks that were not read are held, at most the whole answer. Iteration raises
    RequestError if a job ended because of the server.
    """

    def __init__(self, engine: Engine, jobs: Sequence[Job], deadline: float) -> None:
        self._engine, self._queue = engine, asyncio.Queue[tuple[int, Chunk]]()
        loop = asyncio.get_running_loop()

        def emit(i: int, chunk: Chunk) -> None:
            with suppress(RuntimeError):  # the event loop was closed: nothing reads the chunk
                loop.call_soon_threadsafe(self._queue.put_nowait, (i, chunk))

        self._tasks = engine.submit(jobs, emit, deadline)

    def cancel(self) -> None:
        self._engine.cancel(self._tasks)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Chunk]]:
        n_unfinished = len(self._tasks)
        while n_unfinished:
            i, chunk = await self._queue.get()
            if chunk.finish == "timeout":
                message = f"the answer took longer than this server's limit of {self._engine.timeout:g} s"
                raise RequestError(503, message, code="timeout")
            if chunk.finish == "closed":
                raise as_request_error(ClosedError())
            if chunk.finish == "error":
                raise as_request_error(RuntimeError())
            yield i, chunk
            n_unfinished -= chunk.finish is not None


async def collect(request: Request, stream: ChunkStream) -> list[Chunk]:
    """Return all output of each job as one chunk. Cancel the jobs and raise RequestError if the client disconnects."""
    chunks: dict[int, list[Chunk]] = {}

    async def read() -> None:
        async for i, chunk in stream:
            chunks.setdefault(i, []).append(chunk)

    async def disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    reading, disconnecting = asyncio.create_task(read()), asyncio.create_task(disconnect())
    try:
        await asyncio.wait((reading, disconnecting), return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise RequestError(499, "the client has disconnected")
        await reading
    finally:
        reading.cancel()
        disconnecting.cancel()
        stream.cancel()
    return [_joined(chunks[i]) for i in sorted(chunks)]


def _joined(chunks: Sequence[Chunk]) -> Chunk:
    first, last = chunks[0], chunks[-1]
    tokens = [token for chunk in chunks for token in chunk.tokens]
    return Chunk("".join(chunk.text for chunk in chunks), tokens, first.prompt_scores, last.finish, last.n_new)


class EventStreamResponse(StreamingResponse):
    """Server-sent events made from `stream`, which is cancelled when the client disconnects, even before the first event."""

    def __init__(self, events: AsyncIterator[str], stream: ChunkStream) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.stream = stream

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.stream.cancel()


def prompt_tokens(tokenizer: Tokenizer, prompt: Sequence[int], text: str, scores: Sequence[TokenScore]) -> list[ScoredToken]:
    """Return the tokens of an echoed prompt. Nothing predicts the first: its log-probability is 0, and it has no top tokens."""
    parts = zip(prompt, pieces(tokenizer, prompt, text), [TokenScore(0.0, {}), *scores], strict=True)
    return [ScoredToken(i, piece, score) for i, piece, score in parts]


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def json_response(head: Mapping[str, Any], name: str, items: Iterable[Any]) -> Response:
    """Return `head` with a list under `name`. Call it in a thread: a long list is written item by item."""
    written = ",".join(map(to_json, items))
    return Response(f'{to_json(head)[:-1]},"{name}":[{written}]}}', media_type="application/json")
