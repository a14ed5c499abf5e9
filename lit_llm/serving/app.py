"""The HTTP server: a model, an engine that runs it, the chat page, and the routes of OpenAI and of the challenge."""

import asyncio
import dataclasses
import math
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from lit_llm.args.serve import ServeArgs
from lit_llm.checkpoint.adapters import trained_style
from lit_llm.errors import OptionError
from lit_llm.generation.load_from_options import load_args
from lit_llm.memory import available_bytes
from lit_llm.model.gpt import GPT
from lit_llm.model.kv_cache import KVCache
from lit_llm.serving.challenge_routes import challenge_routes
from lit_llm.serving.connections import QUEUE, Log, server_config
from lit_llm.serving.engine import Engine
from lit_llm.serving.errors import add_error_handlers
from lit_llm.serving.limits import LimitsMiddleware, is_loopback
from lit_llm.serving.openai_routes import Served, openai_routes
from lit_llm.serving.preparation import Preparation
from lit_llm.serving.token_names import TokenNames
from lit_llm.text.conversation import default_style, prompt_style, set_template_kwargs
from lit_llm.text.tokenizer import Tokenizer

GRACE = 3.0  # seconds for unfinished answers after the server was asked to stop
PAGE = Path(__file__).parent / "chat.html"
# The page loads nothing from elsewhere and connects to this server only.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"


def make_app(
    model: GPT, tokenizer: Tokenizer, args: ServeArgs, name: str = "model", style: str | None = None, finetuned: bool = False
) -> FastAPI:
    """Return the server. `app.state.engine` runs the model; the caller ends the server by closing it.

    Args:
        name: Model name for clients.
        style: Prompt style of conversations. None: the tokenizer's own.
        finetuned: The model was finetuned in this style; see `prompt_ids`.

    Raises:
        OptionError: if the keys and values of `max_batch_size` requests do not fit into memory.
    """
    max_length, int8 = min(args.max_length, model.config.block_size), args.kv_cache == "int8"
    _check_memory(model, args.max_batch_size, max_length, int8)
    engine = Engine(
        model, tokenizer, max_batch_size=args.max_batch_size, max_length=max_length, max_queue=args.max_queue,
        timeout=args.timeout, int8=int8,
    )  # fmt: skip

    preparation = Preparation(args.timeout)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        preparation.close()
        engine.close(grace=0)
        engine.join()

    app = FastAPI(title="lit_llm", lifespan=lifespan)
    app.state.engine = engine
    host = args.host if args.api_key is None and is_loopback(args.host) else None
    app.add_middleware(LimitsMiddleware, key=args.api_key, max_size=args.max_body_size, host=host)
    add_error_handlers(app)

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": POLICY})

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    names, style = TokenNames(tokenizer), style or default_style(tokenizer, is_text=False)
    app.include_router(challenge_routes(engine, preparation, names, args.max_new_tokens))
    app.include_router(openai_routes(Served(engine, preparation, names, name, style, finetuned, args.max_new_tokens)))
    return app


def _check_memory(model: GPT, max_batch_size: int, max_length: int, int8: bool) -> None:
    """Print the memory that the keys and values need. Raises OptionError if less is free."""
    needed = KVCache(model.config, max_batch_size, max_length, "meta", model.dtype, chunk=1, int8=int8).n_bytes()
    free = [n for n in map(available_bytes, model.devices) if n is not None]
    message = f"keys and values of {max_batch_size} requests of {max_length} tokens take {needed / 1e9:.2f} GB"
    if free and needed > sum(free):
        raise OptionError(
            f"{message}, but {sum(free) / 1e9:.2f} GB are free. Lower `max_length` or `max_batch_size`, or use `kv_cache` int8"
        )
    print(message, file=sys.stderr)


class _Server(uvicorn.Server):
    """uvicorn's server, which waits for unfinished requests. On a signal the engine ends them in time.

    Args:
        greeting: Line to print on stderr once requests are accepted.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine, greeting: str) -> None:
        super().__init__(config)
        self.engine, self.greeting = engine, greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(Log())
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(QUEUE)  # uvicorn has set the number that is accepted at a time
        if self.started:
            print(self.greeting, file=sys.stderr, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.engine.close(GRACE)
        super().handle_exit(sig, frame)


def serve(args: ServeArgs) -> None:
    """Load the model and answer requests until SIGINT or SIGTERM. Unfinished answers then have a few seconds to end."""
    if args.api_key is None and (key := os.environ.get("LIT_LLM_API_KEY")) is not None:
        args = dataclasses.replace(args, api_key=key)
    with _bind(args.host, args.port) as listener:
        model, tokenizer, folder = load_args(args)
        folder = args.adapter_dir or folder
        trained = trained_style(folder)
        style = args.prompt_style or trained or default_style(tokenizer, is_text=False)
        prompt_style(style, tokenizer)  # raises for a style that does not exist
        set_template_kwargs(tokenizer, args.template_kwargs, style)
        name = args.model_name or "/".join(folder.resolve().parts[-2:])
        app = make_app(model, tokenizer, args, name, style, finetuned=style == trained)
        host, port = listener.getsockname()[:2]
        if args.api_key is None and not is_loopback(host):
            print(
                f"warning: anyone who can reach {host} can use this server. Set LIT_LLM_API_KEY to require a key",
                file=sys.stderr,
            )
        greeting = f"serving {name} on http://{args.host}:{port}"
        config = server_config(app, timeout_graceful_shutdown=math.ceil(2 * GRACE))
        _Server(config, app.state.engine, greeting).run(sockets=[listener])


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to this address, which does not listen yet. Raises OSError if the address is not available."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port} ({error.strerror}). Use another `host` or `port`") from error
    return listener
