"""Many clients at once, some of which disconnect early: each of the other answers must equal that of the model alone."""

import asyncio
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.measuring import report, require_linux
from lit_llm.checkpoint.load import load
from lit_llm.cli import DEMO
from lit_llm.generation.generate import generate
from lit_llm.text.ending import raw_ending

SERVE = Path(__file__).parents[2] / "generate" / "serve.py"
N_QUESTIONS = 48
LEAVING = 0.25  # of the requests
BATCH_SIZE = 32


@dataclass(frozen=True)
class Question:
    prompt: str
    max_tokens: int
    answer: str
    """The greedy continuation of the prompt when the model does no other work."""
    n_new: int


@dataclass
class Found:
    """Observations of all clients."""

    seconds: list[float] = field(default_factory=list)
    """Duration of each correct whole answer."""
    n_tokens: int = 0
    n_left: int = 0
    """Requests that a client abandoned on purpose."""
    wrong: list[str] = field(default_factory=list)
    """Answers that differ from those of the model alone, and requests without an answer."""


def measure(args: BenchmarkArgs) -> None:
    """Print the results. Raises ValueError if an answer was lost or wrong."""
    require_linux("serve_load")
    asked = questions()
    with tempfile.TemporaryDirectory() as folder, server(Path(folder) / "log") as (port, process):
        asyncio.run(send(port, asked, 8, 5, seed=0))  # so that memory that is held once is held
        before, cpu = resident_mb(process.pid), _cpu_seconds(process.pid)
        start = time.monotonic()
        found = asyncio.run(send(port, asked, args.clients, args.seconds, seed=1))
        seconds = time.monotonic() - start  # with the answers that were in progress at the end
        after, cpu = resident_mb(process.pid), _cpu_seconds(process.pid) - cpu
        again = asyncio.run(send(port, asked, 1, 5, seed=2))
    ordered, wrong = sorted(found.seconds), found.wrong + again.wrong
    report({
        "clients": args.clients, "seconds": args.seconds, "batch_size": BATCH_SIZE, "whole_answers": len(ordered),
        "left_on_purpose": found.n_left, "lost_or_wrong": len(wrong),
        "requests_per_second": round(len(ordered) / seconds, 1), "tokens_per_second": round(found.n_tokens / seconds),
        "tokens_per_cpu_second": round(found.n_tokens / cpu), "p50_seconds": round(ordered[len(ordered) // 2], 2),
        "p95_seconds": round(ordered[len(ordered) * 95 // 100], 2), "resident_mb_before": before, "resident_mb_after": after,
        "torch": torch.__version__, "python": platform.python_version(),
    })  # fmt: skip
    if wrong:
        raise ValueError(f"{len(wrong)} answers were lost or wrong, the first: {wrong[0]}")


def questions() -> list[Question]:
    """Return prompts of many lengths whose answers all differ, so that one cannot pass for another."""
    model, tokenizer = load(DEMO / "checkpoint", device="cpu")
    draw, found = random.Random(0), dict[str, Question]()
    rows = [json.loads(line) for line in (DEMO / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    while len(found) < N_QUESTIONS:
        prompt = " ".join(row["output"] for row in draw.sample(rows, draw.randint(1, 6)))
        n_new = draw.randint(4, 64)
        (alone,) = generate(model, tokenizer, [prompt], max_new_tokens=n_new, temperature=0, ending=raw_ending(tokenizer))
        answer = tokenizer.decode(tokenizer.encode(prompt) + alone.ids)[len(prompt) :]
        found.setdefault(answer, Question(prompt, n_new, answer, len(alone.ids)))
    return list(found.values())


async def send(port: int, asked: list[Question], n_clients: int, seconds: float, seed: int) -> Found:
    """Let each client ask one question after another for this time."""
    found, end = Found(), time.monotonic() + seconds

    async def client(number: int) -> None:
        draw = random.Random(f"{seed} {number}")
        while time.monotonic() < end:
            question, stream = draw.choice(asked), draw.random() < 0.5
            patience = draw.expovariate(1.0) if draw.random() < LEAVING else None
            start = time.monotonic()
            try:
                text = await asyncio.wait_for(ask(port, question, stream), patience)
            except TimeoutError:
                found.n_left += 1
            except (OSError, ValueError, KeyError, IndexError, asyncio.IncompleteReadError) as error:
                found.wrong.append(f"{type(error).__name__}: {error}")
            else:
                if text == question.answer:
                    found.seconds.append(time.monotonic() - start)
                    found.n_tokens += question.n_new
                else:
                    found.wrong.append(f"{text!r} instead of {question.answer!r}")

    await asyncio.gather(*map(client, range(n_clients)))
    return found


async def ask(port: int, question: Question, stream: bool) -> str:
    """Return the answer's text. Cancelling closes the connection. Raises ValueError for a status other than 200."""
    fields = {"prompt": question.prompt, "max_tokens": question.max_tokens, "temperature": 0, "stream": stream}
    body = json.dumps({"model": "demo", **fields}).encode()
    head = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Connection: close"]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write("\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body)
        status = (await reader.readline()).split()[1]
        while (await reader.readline()).strip():
            pass
        answer = await reader.read()
        if status != b"200":
            raise ValueError(f"status {status.decode()}: {answer[:200]!r}")
        if not stream:
            return json.loads(answer)["choices"][0]["text"]
        # The chunked encoding puts lines with sizes between the events.
        events = [line.removeprefix(b"data: ") for line in answer.splitlines() if line.startswith(b"data: ")]
        if events[-1] != b"[DONE]":
            raise ValueError(f"the stream ended with {events[-1]!r}")
        return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
    finally:
        writer.transport.abort()


@contextmanager
def server(log: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Yield port and process of a server of the demo, with one thread for the model. `log` gets what it writes."""
    command = [sys.executable, str(SERVE), "--port=0", "--model_name=demo", f"--max_batch_size={BATCH_SIZE}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, env=environment, stderr=file, text=True)
    try:
        while not (greeting := re.search(r"^serving .*:(\d+)$", log.read_text(encoding="utf-8"), re.MULTILINE)):
            if process.poll() is not None:
                raise OSError("the server did not start")
            time.sleep(0.1)
        yield int(greeting[1]), process
    finally:
        process.terminate()
        process.wait(timeout=30)


def resident_mb(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024 // 10**6


def _cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
