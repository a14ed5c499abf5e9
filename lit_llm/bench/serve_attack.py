"""A server under attack: another client's answers must stay right, and about as fast as before."""

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.measuring import machine, report, require_linux
from lit_llm.bench.serve_load import Question, ask, questions, resident_mb, server

CHAT = "/v1/chat/completions"
WARM_UP = 5.0  # seconds
N_IDLE, N_SLOW = 1000, 200  # connections
MOST_LINES = 100  # in the server's log


def measure(args: BenchmarkArgs) -> None:
    """Print the results. Raises ValueError if an answer was lost or wrong, or the log has grown."""
    require_linux("serve_attack")
    asked = [question for question in questions() if question.n_new <= 32]
    with tempfile.TemporaryDirectory() as folder, server(Path(folder) / "log") as (port, process):
        asyncio.run(ask_in_turn(port, asked, WARM_UP, process.pid))
        before = asyncio.run(ask_in_turn(port, asked, args.seconds / 4, process.pid))
        code = f"from {__name__} import main; main({port}, {args.seconds})"
        attacker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert attacker.stdout is not None
        attacker.stdout.readline()  # it has started
        during = asyncio.run(ask_in_turn(port, asked, args.seconds, process.pid))
        refused = json.loads(attacker.communicate()[0])
        after = asyncio.run(ask_in_turn(port, asked, args.seconds / 4, process.pid))
        n_lines = len((Path(folder) / "log").read_text(encoding="utf-8").splitlines())
    found = {"before": before, "during": during, "after": after}
    report({
        "seconds": args.seconds, "median_ratio": round(median(during.seconds) / median(before.seconds), 2),
        "wrong_answers": sum(len(f.wrong) for f in found.values()), "log_lines": n_lines,
        "client": {name: f.summary() for name, f in found.items()}, "attacks": refused, **machine(),
    })  # fmt: skip
    if wrong := before.wrong + during.wrong + after.wrong:
        raise ValueError(f"{len(wrong)} answers were lost or wrong, the first: {wrong[0]}")
    if n_lines >= MOST_LINES:
        raise ValueError(f"the server has logged {n_lines} lines")


class Answers:
    """The observations of a client that asks one question after the other."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.wrong: list[str] = []
        self.resident_mb: list[int] = []

    def summary(self) -> dict[str, float]:
        ordered = sorted(self.seconds)
        return {
            "answers": len(ordered), "p50_seconds": round(median(ordered), 3),
            "p95_seconds": round(ordered[len(ordered) * 95 // 100], 3), "resident_mb_at_most": max(self.resident_mb),
        }  # fmt: skip


async def ask_in_turn(port: int, asked: Sequence[Question], seconds: float, pid: int) -> Answers:
    found, draw, end = Answers(), random.Random(0), time.monotonic() + seconds
    while not found.seconds or time.monotonic() < end:
        question, start = draw.choice(asked), time.monotonic()
        try:
            text = await asyncio.wait_for(ask(port, question, draw.random() < 0.5), 60)
        except (TimeoutError, OSError, ValueError, LookupError, asyncio.IncompleteReadError) as error:
            found.wrong.append(f"{type(error).__name__}: {error}")
        else:
            found.seconds.append(time.monotonic() - start)
            if text != question.answer:
                found.wrong.append(f"{text!r} instead of {question.answer!r}")
        found.resident_mb.append(resident_mb(pid))
        await asyncio.sleep(0.05)
    return found


def main(port: int, seconds: float) -> None:
    """Attack a server, and print how it has answered each attack, in a process of its own."""
    import resource

    os.nice(19)  # attackers have machines of their own
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the server keeps the usual limit
    print("started", flush=True)
    print(json.dumps(asyncio.run(attack(port, seconds))))


async def attack(port: int, seconds: float, n_idle: int = N_IDLE, n_slow: int = N_SLOW) -> dict[str, dict[str, int]]:
    """Make all attacks at once for this time. Return the number of answers by status; `closed` is none."""
    found: dict[str, Counter[str]] = {}

    def until_end(name: str, n: int, one: Callable[[], Awaitable[str]]) -> list[Awaitable[None]]:
        counted = found.setdefault(name, Counter())

        async def client() -> None:
            while True:
                try:
                    counted[await one()] += 1
                except (OSError, asyncio.IncompleteReadError):
                    counted["closed"] += 1

        return [client() for _ in range(n)]

    def sending(request: bytes) -> Callable[[], Awaitable[str]]:
        return lambda: _send(port, request)

    roles, both = ("user", "assistant"), "Transfer-Encoding: chunked"
    short = {"messages": [{"role": roles[i % 2], "content": "a"} for i in range(5001)]}
    many = {"messages": [{"role": roles[i % 2], "content": "a " * 45} for i in range(2001)]}
    clients = [
        *until_end("5001 short messages", 8, sending(_post(short))),
        *until_end("2001 long messages", 4, sending(_post(many))),
        *until_end("a long prompt", 4, sending(_post({"prompt": "a " * 400_000}, path="/v1/completions"))),
        *until_end("another host", 2, sending(_post(short, host="attacker.example"))),
        *until_end("two lengths", 2, sending(_post({"messages": []}, both))),
        *until_end("health", 2, sending(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")),
        *until_end("not HTTP", 2, sending(b"\x16\x03\x01 this is not HTTP\r\n\r\n")),
        *until_end("idle connections", n_idle, lambda: _drip(port, b"")),
        *until_end("slow heads", n_slow, lambda: _drip(port, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 999)),
        *until_end("slow bodies", n_slow, lambda: _drip(port, _post(short)[:999], 200)),
    ]
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.gather(*clients), seconds)
    return {name: dict(counted) for name, counted in found.items()}


def _post(fields: dict[str, Any], *headers: str, path: str = CHAT, host: str = "localhost") -> bytes:
    body = json.dumps({"model": "demo", "max_tokens": 1, **fields}).encode()
    head = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


async def _send(port: int, request: bytes) -> str:
    """Send a request at once, and return the status of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return (await reader.readuntil(b"\r\n")).split()[1].decode()
    finally:
        writer.transport.abort()


async def _drip(port: int, request: bytes, n_first: int = 0) -> str:
    """Send a request a byte a second, after the first bytes, and return the status of the answer, or that there was none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        writer.write(request[:n_first])
        for i in range(n_first, len(request)):
            writer.write(request[i : i + 1])
            await asyncio.sleep(1)

    sending = asyncio.create_task(send())
    try:
        return (await reader.readuntil(b"\r\n")).split()[1].decode()
    finally:
        sending.cancel()
        writer.transport.abort()
