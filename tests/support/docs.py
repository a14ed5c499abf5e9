"""Commands of the documentation."""

import ast
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

from conftest import REPOSITORY

BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)


def commands(path):
    return [line for block in BLOCK.findall((REPOSITORY / path).read_text()) for line in block.splitlines() if line.strip()]


def run_all(lines, cwd):
    for line in lines:
        line = re.sub(r"^python (\S+)", rf"{sys.executable} {REPOSITORY}/\1", line)
        done = subprocess.run(line, shell=True, cwd=cwd, env=_environment(), capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def served(command: str, port: int, cwd: Path) -> Iterator[None]:
    """The server that a line such as `python generate/serve.py --port 8080 &` starts, on another port, once it is healthy."""
    script, *options = re.sub(r"\b8080\b", str(port), command.removesuffix("&")).split()[1:]
    server = subprocess.Popen([sys.executable, REPOSITORY / script, *options], cwd=cwd, env=_environment())
    try:
        deadline, ready = time.monotonic() + 120, False
        while not ready and server.poll() is None and time.monotonic() < deadline:
            try:
                with urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    ready = answer.status == 200
            except OSError:
                time.sleep(0.2)
        assert ready
        yield
    finally:
        server.terminate()
        server.wait(timeout=60)


def rooms_picture() -> str:
    """The rooms of lit_llm as boxes, from the layers that import-linter enforces in pyproject.toml."""
    layers = [["finetune/*.py", "generate/*.py", "eval/*.py", "scripts/*.py"], *_layers()]
    lines = [" │ ".join(names).center(84) for names in layers]
    edge = "─" * 86
    return "\n".join([f"┌{edge}┐", f"\n├{edge}┤\n".join(f"│ {line} │" for line in lines), f"└{edge}┘"])


def _layers() -> Iterator[list[str]]:
    (layers,) = re.findall(r"^layers = \[\n(.*?)^\]", (REPOSITORY / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    for layer in re.findall(r'"(.*)"', layers):
        names = re.split(r" [|:] ", layer)
        yield [f"{name}.py" if (REPOSITORY / "lit_llm" / f"{name}.py").is_file() else f"{name}/" for name in names]


def rooms_table() -> dict[str, list[str]]:
    """Folder of lit_llm -> its modules."""
    folders = sorted(path.parent for path in (REPOSITORY / "lit_llm").glob("*/__init__.py"))
    modules = {
        f.name: sorted(
            [p.stem for p in f.glob("*.py") if p.stem != "__init__"] + [p.parent.name for p in f.glob("*/__init__.py")]
        )
        for f in folders
    }
    return {name: found for name, found in modules.items() if found}


def definitions(path: Path) -> set[str]:
    """Functions and classes of a file, and methods as `Class.method`."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{f.name}" for f in node.body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)}
    return found
