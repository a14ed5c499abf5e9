import ast
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

SCRIPTS = sorted(
    str(path.relative_to(REPOSITORY))
    for folder in ("finetune", "generate", "eval", "scripts")
    for path in (REPOSITORY / folder).glob("*.py")
)


@pytest.mark.parametrize("path", SCRIPTS)
def test_help_comes_without_torch(path):
    code = (
        f"import runpy, sys; sys.argv = [{path!r}, '--help']\n"
        f"try: runpy.run_path({str(REPOSITORY / path)!r}, run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'lightning', 'transformers', 'numpy'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "options:" in done.stdout


def test_scripts_start_without_what_they_may_not_need():
    """Mistakes in the data, and answers on a CPU, need neither Lightning nor a compiler, which take seconds to import."""
    code = (
        "import sys, lit_llm.training.finetune, lit_llm.generation.answer_prompts, lit_llm.generation.chat\n"
        "import lit_llm.serving.app, lit_llm.evaluation.perplexity\n"
        "heavy = {'lightning', 'torch._dynamo', 'sympy', 'transformers', 'bitsandbytes'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=True)


def test_help_of_finetuning_costs_less_than_a_second_of_cpu():
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    start = sum(os.times()[2:4])
    subprocess.run(
        [sys.executable, REPOSITORY / "finetune/lora.py", "--help"], env=environment, check=True, capture_output=True
    )
    assert sum(os.times()[2:4]) - start < 1.0


def test_every_option_has_help():
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "400"}
    for path in SCRIPTS:
        command = [sys.executable, REPOSITORY / path, "--help"]
        text = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        bare = [line for line in text.splitlines() if line.strip().startswith("--") and line.rstrip().endswith("(type:")]
        assert not bare


def test_scripts_import_the_package_only():
    for path in SCRIPTS:
        for node in ast.parse((REPOSITORY / path).read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] not in ("finetune", "generate", "eval", "scripts")
