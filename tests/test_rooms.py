"""The shape of the package: rooms that import only downwards, and files and functions that a reader can take in."""

import ast
import subprocess

from conftest import REPOSITORY

PACKAGE = REPOSITORY / "lit_llm"


def test_rooms_import_only_downwards_and_without_circles():
    done = subprocess.run(["lint-imports", "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_few_modules_are_in_the_root():
    assert len(list(PACKAGE.glob("*.py"))) <= 10


def test_no_file_is_longer_than_450_lines():
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {path: n for path, n in lengths.items() if n > 450}


def test_no_function_but_fit_is_longer_than_60_lines():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "fit":
                found[f"{path.relative_to(PACKAGE)}: {node.name}"] = node.end_lineno - node.lineno + 1
    assert not {name: n for name, n in found.items() if n > 60}
