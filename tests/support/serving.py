"""A server on the loopback address, in a thread of the test."""

import contextlib
import socket
import threading
import time

import uvicorn

from lit_llm.generation.generate import generate
from lit_llm.serving.connections import server_config


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def serving(app):
    """The address of an application that answers."""
    port = free_port()
    server = uvicorn.Server(server_config(app, port=port))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=30)
    assert not thread.is_alive()


def wait_until(condition, seconds: float = 20) -> None:
    """Returns once the condition holds; it must within this time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.01)


def alone(demo, ids, n=30, **options):
    (found,) = generate(*demo, [ids], max_new_tokens=n, **{"temperature": 0, **options})
    return found
