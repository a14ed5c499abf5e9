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
        "import sys, lit_llm.finetune, lit_llm.complete, lit_llm.chat, lit_llm.serve, lit_llm.perplexity\n"
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


LAYERS = [
    ["args", "files", "fetch", "challenge", "distributed"],
    ["hf_keys", "families", "config", "tokenizer", "prompts"],
    ["rope", "cache", "recompute"],
    ["model"],
    ["weights", "sharding", "data", "loss", "compiling", "quantize", "parallel", "placement"],
    ["packed", "sampling", "text_stream"],
    ["methods", "pieces", "decode", "generate", "speculative", "hub", "sources", "curate"],
    ["checkpoint", "engine"],
    ["score"],
    ["adapters", "lit_gpt", "convert", "memory", "summary"],
    ["loggers", "report", "report_html", "tokens", "preflight"],
    ["prepare"],
    ["export"],
    ["optimizers", "runtime"],
    ["resume"],
    ["train"],
    ["cli"],
    ["plan", "estimate", "probe"],
    ["prompt_file", "complete", "run_folder", "held_out", "finetune", "inspect"],
    ["evaluate", "perplexity", "compare", "chat"],
    ["gate", "answers", "challenge_routes", "openai_api", "openai_routes", "serve"],
    ["bench"],
]


def test_modules_import_only_downwards():
    """Module-level imports; an import inside a function is one that a caller pays only when it needs it."""
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    for path in sorted((REPOSITORY / "lit_llm").rglob("*.py")):
        module = path.relative_to(REPOSITORY / "lit_llm").with_suffix("").parts[0]
        if module in ("__init__", "demo"):
            continue
        assert module in level, f"{module} has no layer"
        for node in ast.parse(path.read_text()).body:
            names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
            for name in names:
                if name and name.startswith("lit_llm."):
                    imported = name.split(".")[1]
                    assert imported == module or level[imported] < level[module] or siblings(module, imported, level), (
                        path,
                        name,
                    )


def test_the_architecture_page_names_every_module():
    text = (REPOSITORY / "tutorials" / "architecture.md").read_text()
    modules = [path.name for path in (REPOSITORY / "lit_llm").glob("*.py") if path.name != "__init__.py"]
    assert not [name for name in modules if f"`{name}`" not in text]


def siblings(module: str, imported: str, level: dict[str, int]) -> bool:
    """Modules of one layer may import one another as long as they do so in one direction: the order of the list."""
    names = LAYERS[level[module]]
    return level[module] == level[imported] and names.index(imported) < names.index(module)


def test_scripts_import_the_package_only():
    for path in SCRIPTS:
        for node in ast.parse((REPOSITORY / path).read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] not in ("finetune", "generate", "eval", "scripts")
