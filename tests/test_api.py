"""The Python interface: the same answers and weights as the scripts."""

import dataclasses
import json
import subprocess
import sys
import threading

import pytest
from conftest import REPOSITORY
from safetensors.torch import load_file

import lit_llm
from lit_llm import EvalArgs, LoRAFinetuneArgs, TrainArgs
from lit_llm.cli import DEMO

QUESTION = "Where does Frida live?"
SHORT = {"train": TrainArgs(max_steps=2, global_batch_size=2), "eval": EvalArgs(samples=2, max_new_tokens=8, max_batches=1)}
FLAGS = ("--train.max_steps=2", "--train.global_batch_size=2", "--eval.samples=2", "--eval.max_new_tokens=8")


@pytest.fixture(scope="module")
def run(tmp_path_factory, checkpoint, data_dir):
    """A finetuning run, started from a thread that is not the main one."""
    runs = []
    args = LoRAFinetuneArgs(
        checkpoint_dir=str(checkpoint), data_dir=str(data_dir), out_dir=str(tmp_path_factory.mktemp("run") / "api"), **SHORT
    )
    thread = threading.Thread(target=lambda: runs.append(lit_llm.finetune(args)))
    thread.start()
    thread.join()
    return runs[0]


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, lit_llm; from lit_llm import LoRAFinetuneArgs, OptionError; dir(lit_llm)\n"
        "assert not {'torch', 'yaml', 'jsonargparse'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_dir_lists_the_interface_and_every_name_is_there():
    assert {"load", "load_llm", "finetune", "LoRAFinetuneArgs", "LitError"} <= set(dir(lit_llm))
    assert all(getattr(lit_llm, name) is not None for name in dir(lit_llm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lit_llm.nothing  # noqa: B018


def test_finetuning_in_a_thread_equals_the_script(run, script, checkpoint, data_dir, tmp_path):
    script(
        "finetune/lora.py", "--checkpoint_dir", checkpoint, "--data_dir", data_dir, "--out_dir", tmp_path / "cli",
        *FLAGS, "--eval.max_batches=1",
    )  # fmt: skip
    ours, theirs = (load_file(folder / "adapter.safetensors") for folder in (run.final, tmp_path / "cli" / "final"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert run.metrics.is_file()
    assert run.folder == run.final.parent
    assert len(run.after) == 2


def test_ask_equals_the_script_and_stream_joins_to_it(run, script):
    how = {"temperature": 0.7, "seed": 3, "max_new_tokens": 12}
    flags = [f"--{name}={value}" for name, value in how.items()]
    expected = script("generate/lora.py", "--adapter_dir", run.final, "--prompt", QUESTION, *flags).stdout
    llm = lit_llm.load_llm(run.final)
    assert llm.ask(QUESTION, **how) + "\n" == expected
    assert "".join(llm.stream([{"role": "user", "content": QUESTION}], **how)) + "\n" == expected
    base = lit_llm.load_llm(str(llm.checkpoint_dir), adapter_dir=str(run.final))
    assert base.ask(QUESTION, **how) + "\n" == expected


def test_a_completion_is_that_of_the_script(script):
    prompt, how = "Frida the", {"temperature": 0.0, "max_new_tokens": 12}
    flags = [f"--{name}={value}" for name, value in how.items()]
    expected = script("generate/base.py", "--prompt", prompt, *flags).stdout
    assert prompt + lit_llm.load_llm().complete(prompt, **how) + "\n" == expected


def test_repr_names_model_size_dtype_device_and_adapter(run):
    shown = repr(lit_llm.load_llm(run.final, device="cpu", precision="bf16-true"))
    for part in ("tiny", "parameters", "bfloat16", "on cpu", f"lora adapter {run.final}", "prompt style"):
        assert part in shown
    assert "linears in bnb.int8" in repr(lit_llm.load_llm(device="cpu", quantize="bnb.int8"))


def test_mistakes_name_arguments():
    llm = lit_llm.load_llm(device="cpu")
    for question, how, message in [
        ("a", {"temp": 1}, "Sampling takes temperature"),
        ("a", {"temperature": -1}, "`temperature` must be 0 or at least"),
        ("a", {"stop": "x"}, "`stop` is a list of strings"),
        ("a", {"max_new_tokens": 0}, "`max_new_tokens` above 0"),
        ("a " * 5000, {}, "Shorten the prompt"),
        ([{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}], {}, "out of order"),
    ]:
        with pytest.raises(ValueError, match=message):
            llm.ask(question, **how)
    with pytest.raises(lit_llm.OptionError, match="`precision` 16-mixed is for training"):
        lit_llm.load_llm(precision="16-mixed")
    with pytest.raises(lit_llm.OptionError, match="`epochs` must be above 0"):
        TrainArgs(epochs=0)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        lit_llm.load_llm("nowhere")


def test_the_demo_recipe_is_that_of_the_command_line(monkeypatch, script):
    """Options that differ from their defaults stay; the recipe sets the others."""
    import yaml

    from lit_llm.training import finetune

    monkeypatch.setattr(finetune, "finetune", lambda args: args)
    for kind, name in [(LoRAFinetuneArgs, "lora"), (lit_llm.DPOFinetuneArgs, "dpo"), (lit_llm.FullFinetuneArgs, "full")]:
        ours = lit_llm.finetune(kind(seed=5))
        shown = script(f"finetune/{name}.py", "--config", DEMO / f"{name}.yaml", "--seed=5", "--print_config").stdout
        expected = {**yaml.safe_load(shown), "checkpoint_dir": DEMO / "checkpoint", "data_dir": ours.data_dir}
        assert dataclasses.asdict(ours) == expected
    assert lit_llm.finetune(LoRAFinetuneArgs(train=TrainArgs(max_steps=3))).train.learning_rate == 0.005


def test_the_notebook_runs(tmp_path):
    """The code cells in their order, as a person runs them."""
    notebook = json.loads((REPOSITORY / "tutorials" / "notebook.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code = "\n".join(line for cell in cells for line in cell.splitlines() if not line.startswith("%"))
    environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert "Frida lives" in done.stdout
