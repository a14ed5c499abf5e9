"""Generation and evaluation on two ranks, each with half of the heads and features, against one."""

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from conftest import REPOSITORY
from harness import write_task
from tiny import WORDS, make_checkpoint, rows

from lit_llm.args.generate import GenerateArgs

ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}", "OMP_NUM_THREADS": "1"}

LATENT = {"kv_lora_rank": 12, "q_lora_rank": 20, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 10}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What scripts print, and the harness's results, with one process and with two."""
    folder = tmp_path_factory.mktemp("split")
    llama = make_checkpoint(folder / "llama", num_key_value_heads=2)
    neox = make_checkpoint(folder / "neox", "gpt_neox")
    bloom = make_checkpoint(folder / "bloom", "bloom")
    latent = make_checkpoint(folder / "minicpm3", "minicpm3", **LATENT)
    questions = [
        {"question": row["instruction"], "choices": WORDS[i : i + 4], "answer": i % 4} for i, row in enumerate(rows(12, seed=3))
    ]
    write_task(
        folder, "words", {"test": questions}, output_type="multiple_choice", doc_to_text="{{question}}",
        doc_to_choice="{{choices}}", doc_to_target="{{answer}}", test_split="test",
    )  # fmt: skip
    common = ["--accelerator=cpu"]
    scripts = [
        ["generate/base.py", f"--checkpoint_dir={llama}", "--prompt=the red cat", "--temperature=0", *common],
        ["generate/base.py", f"--checkpoint_dir={neox}", "--prompt=a small house", "--num_samples=3", *common],
        ["eval/lm_eval_harness.py", f"--checkpoint_dir={llama}", "--tasks=words", f"--include_path={folder}", *common],
        ["generate/base.py", f"--checkpoint_dir={bloom}", "--prompt=a small house", "--temperature=0", *common],
        ["generate/base.py", f"--checkpoint_dir={latent}", "--prompt=a small house", "--temperature=0", *common],
    ]
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        for i, arguments in enumerate(scripts):
            more = [f"--output_file={folder}/one-{i}.json"] if "eval" in arguments[0] else []
            patch.setattr(sys, "argv", [*arguments, *more])
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                runpy.run_path(str(REPOSITORY / arguments[0]), run_name="__main__")
            found.append(printed.getvalue())
    todo = [[arguments, f"{folder}/{i}"] for i, arguments in enumerate(scripts)]
    todo[2][0].append(f"--output_file={folder}/two-2.json")
    (folder / "todo.json").write_text(json.dumps(todo))
    command = [sys.executable, REPOSITORY / "tests/support/split.py", folder / "todo.json"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = {name: json.loads((folder / f"{name}-2.json").read_text())["results"] for name in ("one", "two")}
    return found, [(folder / str(i)).read_text() for i in range(len(scripts))], results


def test_two_processes_write_the_texts_of_one(answers):
    one, two, _ = answers
    assert all(len(text) > 50 for text in one)
    assert two == one


def test_the_harness_finds_the_same_with_two_processes(answers):
    one, two = (answers[2][name]["words"] for name in ("one", "two"))
    assert two == one
    assert 0 < one["acc,none"] < 1


def test_options_that_do_not_go_with_several_devices_are_refused():
    with pytest.raises(ValueError, match="`devices` cannot be combined with `compile`"):
        GenerateArgs(prompt="", devices=2, compile=True)
    with pytest.raises(ValueError, match="`devices` above 1 needs `strategy` layers"):
        GenerateArgs(prompt="", devices=2, output_file=Path("answers.jsonl"))
    with pytest.raises(ValueError, match="`strategy` layers needs `devices` above 1"):
        GenerateArgs(prompt="", strategy="layers")
