import ast
import os
import subprocess
import sys
import warnings

import pytest
from conftest import REPOSITORY

from lit_llm import cli
from lit_llm.args.finetune import LoRAFinetuneArgs
from lit_llm.errors import OptionError

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


def test_messages_name_the_flags_that_the_script_has(monkeypatch, capsys):
    """A library names arguments; a user of a script reads flags, those of groups too, and no flag that is not there."""
    monkeypatch.setattr(sys, "argv", ["finetune/lora.py"])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def main(args: LoRAFinetuneArgs) -> None:
        for _ in range(2):
            with warnings.catch_warnings():  # after which Python no longer knows what it has shown
                warnings.warn("`lora.r` is high", stacklevel=1)
        raise OptionError("`quantize` and `train.optimizer` exclude each other.\nUse `adamw` without `lora` or `top_k`.")

    with pytest.raises(SystemExit) as stopped:
        cli.run(main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "warning: --lora.r is high",
        "error: --quantize and --train.optimizer exclude each other.",
        "error: Use `adamw` without --lora or `top_k`.",
    ]


def run_list(shell, **environment):
    """`scripts/download.py`, which prints a list, within a command of the shell. Returns its exit code and stderr."""
    command = shell.replace("LIST", f"{sys.executable} {REPOSITORY / 'scripts' / 'download.py'}")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_quietly(unbuffered):
    code, out, err = run_list("set -o pipefail; LIST | true", PYTHONUNBUFFERED=unbuffered)
    assert (code, out, err) == (141, "", "")


def test_a_full_disk_behind_stdout_is_reported_once():
    code, _, err = run_list("LIST > /dev/full")
    assert code == 2
    assert err.splitlines() == [
        "error: no space left on the disk. Free some, or write elsewhere; earlier checkpoints are intact"
    ]


def test_streams_that_the_caller_closed_are_opened(tmp_path):
    """Otherwise a file that the program opens would have the number 1 or 2, and get what is printed."""
    code, out, err = run_list("LIST <&- >&- 2>&-")
    assert (code, out, err) == (0, "", "")
    code, out, err = run_list("LIST --repo_id=x --checkpoint_dir= --bogus 2>&-")
    assert (code, out, err) == (2, "", "")  # stdout holds results only


def test_too_little_memory_is_said_in_words():
    script = REPOSITORY / "generate" / "base.py"
    code, _, err = run_list(f"ulimit -v 300000; {sys.executable} {script} --prompt x")
    assert code == 2, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: not enough memory (")
