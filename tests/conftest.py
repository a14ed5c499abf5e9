import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SHARED_DATA = Path(os.environ.get("LIT_LLM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, help="random inputs for each fuzzed reader; see tests/support/fuzz.py")


def pytest_configure(config):
    os.environ["LIT_LLM_FUZZ"] = str(config.getoption("--fuzz") or 0)  # decorators read it when a module is imported


def pytest_collection_modifyitems(config, items):
    import torch

    if not config.getoption("-m"):
        for item in items:
            for name, reason in (
                ("slow", "long, or one more family"),
                ("real", "needs a real model of 135M weights"),
            ):
                if name in item.keywords:
                    item.add_marker(pytest.mark.skip(reason=f"{reason}; run with -m {name}"))
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real models, tokenizers and data, which are not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real data is not at {SHARED_DATA}; set LIT_LLM_SHARED_DATA")
    return SHARED_DATA


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny random Llama as Hugging Face publishes it, with a tokenizer."""
    from tiny import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "org" / "tiny")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """Data folder of 20 rows to train on and 4 to validate."""
    from tiny import make_data

    return make_data(tmp_path_factory.mktemp("data") / "rows")


@pytest.fixture
def script(tmp_path):
    """Run a script as a user does, in an empty folder; returns the finished process."""

    def run(*arguments, check: bool = True, **kwargs) -> subprocess.CompletedProcess:
        path, *rest = map(str, arguments)
        command = [sys.executable, str(REPOSITORY / path), *rest]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        kwargs = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300, **kwargs}
        done = subprocess.run(command, **kwargs)
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run
