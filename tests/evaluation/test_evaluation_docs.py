"""The tutorials on evaluation and on the challenge, executed with tiny models."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from conftest import REPOSITORY
from docs import commands, run_all, served
from serving import free_port
from tiny import make_checkpoint, rows

TUTORIALS = REPOSITORY / "tutorials"


def test_the_tutorial_on_evaluation_runs_as_written(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    make_checkpoint(tmp_path / "checkpoints" / "org" / "model")
    (tmp_path / "tasks").mkdir()
    (task,) = re.findall(r"```yaml\n(.*?)```", (TUTORIALS / "evaluate.md").read_text(), re.DOTALL)
    (tmp_path / "tasks" / "colours.yaml").write_text(task)
    questions = [{"question": "the cat is", "choices": ["red", "big house"], "answer": i % 2} for i in range(3)]
    (tmp_path / "tasks" / "colours.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    (tmp_path / "text.txt").write_text("the red cat sees a dog " * 60)
    (tmp_path / "rows.json").write_text(json.dumps(rows(40)))
    prepare = "python scripts/prepare_json.py --json_path rows.json --destination_path data/rows"
    train = "python finetune/lora.py --checkpoint_dir checkpoints/org/model --data_dir data/rows --out_dir out/lora/rows"
    run_all([prepare, train, *commands("tutorials/evaluate.md")], tmp_path)
    assert json.loads((tmp_path / "results" / "base.json").read_text())["n-samples"]["colours"]["effective"] == 3
    assert (tmp_path / "results" / "samples_colours.jsonl").is_file()


def test_the_challenge_from_data_to_a_checked_server(tmp_path):
    pytest.importorskip("fastapi")
    download, *lines, serve, check = commands("tutorials/neurips_challenge.md")
    assert download == "python scripts/download.py --repo_id mistralai/Mistral-7B-v0.1"
    folder = tmp_path / "checkpoints" / "mistralai" / "Mistral-7B-v0.1"
    make_checkpoint(folder, "mistral", max_position_embeddings=2048, num_key_value_heads=2)
    (tmp_path / "mix.json").write_text(json.dumps(rows(40)))
    run_all(lines, tmp_path)
    port = free_port()
    with served(serve, port, tmp_path):
        run_all([check.replace("localhost:8080", f"127.0.0.1:{port}")], tmp_path)


def test_the_container_starts_what_exists():
    """Paths and options of the Dockerfile, without an engine to build it."""
    text = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", "")
    for copied in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((REPOSITORY / name).exists() for name in copied.split() if name != "adapter")
    command = yaml.safe_load(re.findall(r"^CMD (.+)$", text, re.MULTILINE)[0])
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    options = command[2:]
    done = subprocess.run(
        [sys.executable, REPOSITORY / command[1], *options], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--checkpoint_dir base does not exist" in done.stderr
