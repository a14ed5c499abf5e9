"""Datasets of a loopback hub: what `prepare_hf.py` writes of them, and how it refuses; folders and patterns behind hf://."""

import io
import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from fake_datasets import DatasetHub

pytest.importorskip("datasets")

ROWS = [{"instruction": f"q{i}", "output": f"a{i}", "when": "2026"} for i in range(30)]
VAL = [{"instruction": f"v{i}", "output": f"a{i}", "when": "2026"} for i in range(4)]


def parquet(rows):
    import pandas

    content = io.BytesIO()
    table = pandas.DataFrame(rows)
    table["when"] = pandas.to_datetime(table["when"])
    table.to_parquet(content)
    return content.getvalue()


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


CARD = b"""---
configs:
- config_name: main
  data_files: one/*.jsonl
- config_name: other
  data_files:
  - split: train
    path: two/*.jsonl
---
"""


@pytest.fixture(scope="module")
def hub():
    with DatasetHub() as hub:
        hub.repos["org/rows"] = {
            "README.md": b"about",
            "data/train-00000-of-00002.parquet": parquet(ROWS[:20]),
            "data/train-00001-of-00002.parquet": parquet(ROWS[20:]),
            "data/validation-00000-of-00001.parquet": parquet([*VAL, ROWS[3]]),
        }
        hub.repos["org/gated"] = hub.repos["org/rows"]
        hub.tokens["org/gated"] = {"hf_mine"}
        hub.repos["org/two"] = {"README.md": CARD, "one/a.jsonl": jsonl(ROWS), "two/b.jsonl": jsonl(VAL)}
        hub.repos["org/broken"] = {"train.jsonl": jsonl(ROWS) + b"{", "README.md": b"x"}
        yield hub


MANY = """
import contextlib, io, json, os, runpy, sys
for script, *arguments in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    os.environ.update(a.split("=") for a in arguments if a.startswith("HF_TOKEN="))
    sys.argv = [script, *(a for a in arguments if not a.startswith("HF_TOKEN="))]
    code, told = 0, io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            runpy.run_path(f"SCRIPTS/prepare_{script}.py", run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, told.getvalue()]))
"""
ALL = "--val_split_fraction=0"
GOOD = {
    "whole": ["hf", "--dataset=org/rows", ALL],
    "whole again": ["hf", "--dataset=org/rows", ALL],
    "split": ["hf", "--dataset=org/rows", "--val_split=validation"],
    "columns": ["hf", "--dataset=org/rows", "--columns=output", "--columns=instruction", "--output_column=instruction",
                "--instruction_column=output", ALL],
    "other": ["hf", "--dataset=org/two", "--config_name=other", ALL],
    "token": ["hf", "--dataset=org/gated", "HF_TOKEN=hf_mine", ALL],
    "local": ["hf", "--dataset=local", "--val_split=test"],
    "local again": ["hf", "--dataset=local", "--val_split=test"],
    "pattern": ["json", "--json_path=hf://datasets/org/rows/data/train-*.parquet", ALL],
}  # fmt: skip
BAD = {
    "missing": (["--dataset=org/absent"], "there is no dataset org/absent on the hub, or it is private (401). Check ORG/NAME"),
    "gated": (["--dataset=org/gated"], "org/gated is gated, and no access token is set. Accept its terms at http"),
    "gated, wrong token": (["--dataset=org/gated", "HF_TOKEN=hf_other"], "and your access token does not open it. Accept"),
    "revision": (["--dataset=org/rows", "--revision=v9"], "the dataset org/rows has no revision 'v9'"),
    "absent split": (
        ["--dataset=org/rows", "--split=nope"],
        "org/rows cannot be read: Bad split: nope. Available",
    ),
    "val split": (["--dataset=org/rows", "--val_split=nope"], "Bad split: nope. Available splits: ['train', 'validation']"),
    "no configuration": (["--dataset=org/two"], "Config name is missing. Please pick one among the available configs: ['main'"),
    "configuration": (["--dataset=org/two", "--config_name=x"], "BuilderConfig 'x' not found. Available: ['main', 'other']"),
    "column": (
        ["--dataset=org/rows", "--columns=answer"],
        "org/rows cannot be read: Column name ['answer'] not in the dataset",
    ),
    "name": (["--dataset=a/b/c"], "--dataset a/b/c is neither a folder nor ORG/NAME of the hub"),
    "two splits": (
        ["--dataset=org/rows", "--val_split=validation", "--val_split_fraction=0.1"],
        "--val_split cannot be combined with --val_split_fraction",
    ),
    "broken": (["--dataset=org/broken"], "org/broken cannot be read: "),
}
BAD_PATTERN = ["json", "--json_path=hf://datasets/org/gated/data/*.parquet"]


@pytest.fixture(scope="module")
def runs(hub, tmp_path_factory):
    """Exit code and output of each case, all run in one process, which imports `datasets` once; and their folder."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "local").mkdir()
    (folder / "local/train.jsonl").write_bytes(jsonl(ROWS))
    (folder / "local/test.jsonl").write_bytes(jsonl(VAL))
    cases = {name: [*case, f"--destination_path={name.split()[0]}-out", "--workers=1"] for name, case in GOOD.items()}
    cases |= {name: ["hf", *case] for name, (case, _) in BAD.items()} | {"bad pattern": BAD_PATTERN}
    command = [sys.executable, "-c", MANY.replace("SCRIPTS", str(REPOSITORY / "scripts")), json.dumps([*cases.values()])]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, map(json.loads, done.stdout.splitlines()), strict=True)), folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def records(rows):
    return [{"instruction": row["instruction"], "output": row["output"], "input": ""} for row in rows]


def test_a_dataset_is_streamed_into_a_data_folder(runs):
    found, folder = runs
    assert not {name: found[name] for name in GOOD if found[name][0]}
    for name in ("whole", "split", "token", "local", "pattern"):
        assert lines(folder / f"{name}-out/train.jsonl") == records(ROWS), name
    assert lines(folder / "split-out/val.jsonl") == lines(folder / "local-out/val.jsonl") == records(VAL)
    about = json.loads((folder / "split-out/meta.json").read_text())
    assert about["source"] == "org/rows@" + "c0ffee" * 6 + "abcd"
    assert about["dropped"] == {"duplicate": 1}  # a row of the training split
    assert about["ignored"] == {"when": 35}
    assert lines(folder / "columns-out/train.jsonl")[0] == {"instruction": "a0", "output": "q0", "input": ""}
    assert json.loads((folder / "columns-out/meta.json").read_text())["ignored"] == {}
    assert lines(folder / "other-out/train.jsonl") == records(VAL)
    assert "is up to date" in found["whole again"][1]
    assert "is up to date" in found["local again"][1]
    assert not list(folder.glob(".parts-*"))


@pytest.mark.parametrize("kind", BAD)
def test_a_dataset_that_cannot_be_read_is_one_line(runs, kind):
    found, folder = runs
    code, told = found[kind]
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (2, 1), told
    assert BAD[kind][1] in errors[0]
    assert "Traceback" not in told
    assert not (folder / "data/hf").exists()


def test_a_pattern_in_a_gated_dataset_is_one_line(runs):
    code, told = runs[0]["bad pattern"]
    assert code == 2
    assert len([line for line in told.splitlines() if line.startswith("error: hf://datasets/org/gated/data/")]) == 1, told


def test_the_library_is_named_if_it_is_missing(monkeypatch):
    from lit_llm.args.data import PrepareHfArgs
    from lit_llm.data.hub_datasets import hub_dataset
    from lit_llm.errors import DataError

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="needs the package datasets: pip install datasets"):
        hub_dataset(PrepareHfArgs(dataset="org/rows"))
