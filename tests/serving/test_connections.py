"""Clients that send too much, too slowly, or under another name, and one that only wants an answer."""

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY
from serving import serving

pytest.importorskip("fastapi")

from test_openai_routes import request_of, send

import lit_llm
from lit_llm.args.serve import ServeArgs
from lit_llm.bench import serve_attack
from lit_llm.cli import DEMO
from lit_llm.serving import connections, limits
from lit_llm.serving.app import make_app
from lit_llm.text.styles import Turns


@pytest.fixture(scope="module")
def demo():
    return lit_llm.load(DEMO / "checkpoint", device="cpu")


@pytest.fixture
def url(demo, monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 5)
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1.0)
    monkeypatch.setattr(limits, "BODY_SECONDS", 1.0)
    with serving(make_app(*demo, ServeArgs(), name="demo")) as address:
        yield address


def connect(url, data=b""):
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(data)
    return connection


def read(connection):
    """What the server sends until it closes the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            found += part
    return found


def status_of(url, *headers):
    with connect(url, "\r\n".join(["GET /health HTTP/1.1", *headers, "Connection: close", "", ""]).encode()) as connection:
        return int(read(connection).split()[1])


def test_idle_connections_make_room_for_the_one_that_asks(url):
    idle = [connect(url) for _ in range(20)]
    assert send(url, request_of(max_tokens=2))[0] == 200
    for connection in idle[:15]:
        assert read(connection) == b""  # closed: the oldest first
    for connection in idle:
        connection.close()


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nX: a"])
def test_a_slow_head_is_closed(url, start):
    with connect(url, start) as connection:
        started = time.monotonic()
        assert read(connection) == b""
        assert time.monotonic() - started < 5


def test_a_slow_body_is_refused(url):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    with connect(url, head) as connection:
        status, body = read(connection).split(b"\r\n", 1)
    assert b" 408 " in status
    assert json.loads(body.partition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"


def test_a_pace_delays_each_by_those_before_it(monkeypatch):
    now = 100.0
    monkeypatch.setattr(limits.time, "monotonic", lambda: now)
    pace = limits.Pace(rate=4, longest=1.0)
    assert [pace.delay(n) for n in (1, 2, 0, 1, 1, 1)] == [0, 0.25, 0, 0.75, 1, 1]
    now = 103.0
    assert pace.delay(1) == 0  # time that was not used is not saved up
    assert pace.delay(1) == 0.25


def test_answers_that_need_no_model_are_paced(url, monkeypatch):
    paced = []
    monkeypatch.setattr(limits.Pace, "delay", lambda pace, n: paced.append(n) or 0.0 if pace.rate == limits.QUICK_RATE else 0.0)
    for name, ask, expected in (
        ("read", lambda: status_of(url, "Host: localhost"), (200, 1)),
        ("error", lambda: send(url, request_of(temperature=-1))[0], (400, 1)),
        ("no such route", lambda: send(url, b"{}", path="/v1/nothing")[0], (404, 1)),
        ("not HTTP", lambda: int(read(connect(url, b"this is not HTTP\r\n\r\n")).split()[1]), (400, 1)),
        ("answer", lambda: send(url, request_of(max_tokens=2))[0], (200, 0)),
    ):
        paced.clear()
        assert (ask(), len(paced)) == expected, name


def test_a_request_with_two_lengths_closes_the_connection(url):
    second = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    request = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    with connect(url, request + second) as connection:
        answer = read(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1


NAMES = {
    "localhost": 200, "LOCALHOST:80": 200, "localhost.": 200, "a.localhost": 200, "127.0.0.1:9": 200, "[::1]:9": 200,
    "10.0.0.1": 200, "attacker.example": 403, "127.0.0.1.attacker.example": 403, "localhost.attacker.example": 403,
    "[attacker]": 403, "": 403, "notlocalhost": 403,
}  # fmt: skip


def test_other_host_names_are_refused_without_a_key(url, demo):
    assert {name: status_of(url, f"Host: {name}") for name in NAMES} == NAMES
    with serving(make_app(*demo, ServeArgs(api_key="sesame"), name="demo")) as address:
        assert status_of(address, "Host: attacker.example") == 200
    with serving(make_app(*demo, ServeArgs(host="0.0.0.0"), name="demo")) as address:
        assert status_of(address, "Host: my.machine") == 200


def test_a_conversation_is_bounded_before_it_is_rendered(url, demo, monkeypatch):
    monkeypatch.setattr(Turns, "parts", None)

    def ask(n, text):
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i in range(n)]
        return send(url, request_of(prompt=None, messages=messages), "/v1/chat/completions")

    status, answer = ask(5001, "a")
    assert (status, answer["error"]["param"]) == (400, "messages")
    status, answer = ask(201, "a " * 500)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_each_turn_is_rendered_once(demo, monkeypatch):
    """However long the conversation is: otherwise the work grows with the square of its length."""
    rendered, parts = [], Turns.parts

    def counted(style, messages, tokens):
        rendered.append(len(messages))
        return parts(style, messages, tokens)

    app = make_app(*demo, ServeArgs(), name="demo")
    with serving(app) as url:
        for n in (5, 21):
            messages = [{"role": ("user", "assistant")[i % 2], "content": "a"} for i in range(n)]
            rendered.clear()
            monkeypatch.setattr(Turns, "parts", counted)
            send(url, request_of(prompt=None, messages=messages, max_tokens=1), "/v1/chat/completions")
            monkeypatch.setattr(Turns, "parts", parts)
            assert sum(m == n for m in rendered) <= 3


def test_a_request_that_is_not_prepared_in_time_ends(demo, monkeypatch):
    monkeypatch.setattr(Turns, "parts", lambda *_: [time.sleep(1), ""][1:])
    with serving(make_app(*demo, ServeArgs(timeout=0.2), name="demo")) as url:
        messages = [{"role": "user", "content": "a"}]
        status, answer = send(url, request_of(prompt=None, messages=messages), "/v1/chat/completions")
        assert (status, answer["error"]["code"]) == (503, "timeout")


def test_a_server_under_attack_answers_right(tmp_path):
    """With few open files, which the attackers would use up."""
    files, log = 200, tmp_path / "log"
    command = [sys.executable, REPOSITORY / "generate/serve.py", "--port=0", "--model_name=demo"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment, stderr=file, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        )
    try:
        while not (found := re.search(r"serving .*:(\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        port = int(found[1])
        expected = send(f"http://127.0.0.1:{port}", request_of(temperature=0))[1]["choices"]

        async def both():
            attackers = asyncio.create_task(serve_attack.attack(port, 8, n_idle=250, n_slow=30))
            await asyncio.sleep(2)
            answers = []
            while not attackers.done():
                answers.append(await asyncio.to_thread(send, f"http://127.0.0.1:{port}", request_of(temperature=0)))
            return answers, await attackers

        answers, refused = asyncio.run(both())
        assert answers
        assert all(status == 200 and answer["choices"] == expected for status, answer in answers)
        for name, statuses in refused.items():
            assert statuses.keys() <= {"closed", {"another host": "403", "health": "200"}.get(name, "400")}, name
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
    assert len(log.read_text().splitlines()) < 10, log.read_text()
