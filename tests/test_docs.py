"""What the documentation says, held against the code."""

import dataclasses
import re
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from docs import commands, definitions, rooms_picture, rooms_table, run_all, served
from english import foreign_phrases
from serving import free_port
from tiny import make_checkpoint, make_data, rows

from lit_llm.args.finetune import LoRAFinetuneArgs


def test_the_finetuning_tutorial_runs_as_written(tmp_path):
    import json

    make_checkpoint(tmp_path / "checkpoints" / "org" / "model")
    (tmp_path / "rows.json").write_text(json.dumps(rows(60)))
    run_all(commands("tutorials/finetune.md"), tmp_path)
    assert (tmp_path / "out/lora/rows/final/adapter.json").is_file()


def test_the_data_tutorial_runs_as_written(tmp_path):
    import gzip
    import json

    from templates import CHAT

    from lit_llm.text.styles import STYLES

    make_checkpoint(tmp_path / "checkpoints" / "org" / "model")
    table = [f'"{row["instruction"]}","{row["output"]}"' for row in rows(30)]
    (tmp_path / "my.csv").write_text("\n".join(["instruction,output", *table]))
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ({"messages": CHAT}, *rows(5))))
    (tmp_path / "book.txt").write_text("the red cat\n\n" * 600)
    (tmp_path / "test.jsonl").write_text('{"question": "how far away is the moon from the earth in miles"}')
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "chats.jsonl").read_bytes()))
    run_all(commands("tutorials/data.md"), tmp_path)
    assert (tmp_path / "out/lora/my/final/adapter.json").is_file()
    text = (REPOSITORY / "tutorials" / "data.md").read_text()
    assert not [name for name in STYLES if f"`{name}`" not in text]


def test_the_generation_tutorial_runs_as_written(tmp_path):
    for name in ("model", "small"):
        make_checkpoint(tmp_path / "checkpoints" / "org" / name)
    (tmp_path / "prompts.jsonl").write_text('"the red cat"\n"a"\n')
    run_all(commands("tutorials/generate.md"), tmp_path)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2


def test_the_cluster_tutorial_runs_as_written(tmp_path):
    make_checkpoint(tmp_path / "checkpoints" / "org" / "model")
    make_data(tmp_path / "data" / "rows")
    run_all(commands("tutorials/cluster.md"), tmp_path)
    assert (tmp_path / "out/full/rows/final/lit_model.safetensors").is_file()


def test_merging_and_export_run_as_written(tmp_path):
    make_checkpoint(tmp_path / "checkpoints" / "org" / "model")
    make_data(tmp_path / "data" / "rows")
    run_all(commands("tutorials/finetune_methods.md"), tmp_path)
    assert (tmp_path / "out/for-transformers/model.safetensors").is_file()
    assert (tmp_path / "out/for-peft/adapter_model.safetensors").is_file()


def test_the_tutorial_on_gguf_runs_as_written(tmp_path):
    pytest.importorskip("gguf")
    make_checkpoint(tmp_path / "checkpoints" / "org" / "model", hidden_size=64, intermediate_size=96)
    make_data(tmp_path / "data" / "rows")
    run_all(commands("tutorials/gguf.md"), tmp_path)
    assert (tmp_path / "out/gguf/Modelfile").is_file()
    assert (tmp_path / "out/gguf-adapter/adapter.gguf").is_file()
    assert (tmp_path / "out/from-gguf/final/adapter.json").is_file()


def test_the_readme_runs_on_a_csv(tmp_path):
    """The commands of "Your model, your data", with a tiny model where the download would be."""
    lines = [line for line in commands("README.md") if line.startswith("python")]
    assert lines[0] == "python finetune/lora.py"
    assert lines[1].startswith("python scripts/download.py --repo_id EleutherAI/pythia-160m")
    make_checkpoint(tmp_path / "checkpoints" / "EleutherAI" / "pythia-160m", "gpt_neox")
    table = [f'"{row["instruction"]}","{row["output"]}"' for row in rows(30)]
    (tmp_path / "my.csv").write_text("\n".join(["instruction,output", *table]))
    run_all(lines[2:], tmp_path)


def test_the_page_for_users_of_lit_gpt_runs_as_written(tmp_path):
    from lit_gpt import make_lit_gpt

    make_lit_gpt(tmp_path / "checkpoints" / "org" / "mine", "llama", "litgpt-0.4")
    run_all(commands("tutorials/from_lit_gpt.md"), tmp_path)
    assert (tmp_path / "checkpoints/org/mine/lit_model.safetensors").is_file()


def test_the_page_on_python_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "tutorials" / "python.md").read_text(), re.DOTALL)
    exec("".join(blocks), {})
    assert (tmp_path / "out/python/final/adapter.json").is_file()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page talks to the server with curl")
def test_the_tutorial_on_the_server_runs_as_written(tmp_path, capsys):
    pytest.importorskip("fastapi")
    openai = pytest.importorskip("openai")
    serve, *requests = commands("tutorials/serve.md")
    (program,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "tutorials" / "serve.md").read_text(), re.DOTALL)
    port = free_port()
    with served(serve, port, tmp_path):
        run_all([line.replace(":8080", f":{port}") for line in requests], tmp_path)
        exec(program.replace(":8080", f":{port}"), {"openai": openai})
    assert capsys.readouterr().out.strip()


def options(kind, prefix=""):
    """Flag -> default of a dataclass of options and its groups."""
    for f in dataclasses.fields(kind):
        default = f.default if f.default is not dataclasses.MISSING else None
        if f.default_factory is not dataclasses.MISSING:
            yield from options(f.default_factory, f"{prefix}{f.name}.")
        else:
            yield f"--{prefix}{f.name}", default


def defaults_table():
    """The table of tutorials/defaults.md."""
    lines = ["| flag | default |", "|---|---|"]
    for flag, default in options(LoRAFinetuneArgs):
        shown = "" if default is None else str(default).lower() if isinstance(default, bool) else default
        lines.append(f"| `{flag}` | {shown} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_defaults_is_that_of_the_code():
    assert defaults_table() in (REPOSITORY / "tutorials" / "defaults.md").read_text()


@pytest.mark.parametrize(
    "path", [p.relative_to(REPOSITORY) for p in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("tutorials/*.md")]]
)
def test_links_between_documents_lead_somewhere(path):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (REPOSITORY / path).read_text()):
        assert ((REPOSITORY / path).parent / target).exists(), target


def test_scripts_named_in_the_documents_exist():
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("tutorials/*.md")]:
        for script in re.findall(r"\b(?:finetune|generate|eval|scripts)/\w+\.py", path.read_text()):
            assert (REPOSITORY / script).is_file(), f"{path.name}: {script}"


def test_figures_of_the_readme_are_those_of_the_benchmarks():
    """Each cell of the comparison occurs in the row of its shape and tool in tutorials/benchmarks.md."""
    measured = (REPOSITORY / "tutorials" / "benchmarks.md").read_text().splitlines()
    tools = ("lit_llm", "peft|transformers", "litgpt")
    rows = re.findall(
        r"^\| (.*?) \| ([\d.]+).*? \| ([\d.]+).*? \| ([\d.]+).*? \|$", (REPOSITORY / "README.md").read_text(), re.M
    )
    assert len(rows) == 5
    shape = ""
    for what, *figures in rows:
        shape = next(iter(re.findall(r"[a-z]+-\d+m", what)), shape)
        for tool, figure in zip(tools, figures, strict=True):
            row = re.compile(rf"\| {shape} \|(.*\|)? ({tool}) \|(.*\|)? {re.escape(figure)}[ |]")
            assert any(row.search(line) for line in measured), (what, tool, figure)


ARCHITECTURE = REPOSITORY / "tutorials" / "architecture.md"


def test_picture_and_table_of_rooms_equal_the_code():
    text = ARCHITECTURE.read_text()
    assert rooms_picture() in text, rooms_picture()
    shown = {room: sorted(re.findall(r"`(\w+)`", cell)) for room, cell in re.findall(r"^\| `(\w+)/` \| (.*?) \|", text, re.M)}
    assert shown == rooms_table()


def test_files_and_functions_named_in_the_architecture_exist():
    """`name()` is defined in a file that the same paragraph or step names."""
    text = re.sub(r"^```.*?^```$", "", ARCHITECTURE.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = 0
    for block in re.split(r"\n\s*\n|^\d+\. ", text, flags=re.MULTILINE):
        named = [REPOSITORY / path for path in re.findall(r"`((?:lit_llm|tests|finetune|generate)/[\w/]+\.py)`", block)]
        assert all(path.is_file() for path in named), block
        defined = set().union(*map(definitions, named))
        for name in re.findall(r"`([\w.]+)\(\)`", block):
            assert name in defined, f"{name} is not in {[path.name for path in named]}"
            found += 1
    assert found > 50


def test_the_examples_of_the_architecture_have_tests():
    lines = re.findall(r"^pytest (.*)$", ARCHITECTURE.read_text(), re.MULTILINE)
    assert len(lines) == 3  # a family, a method, a data format
    for line in lines:
        command = [sys.executable, "-m", "pytest", *line.split(), "--collect-only", "-n", "0"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, f"pytest {line} selects no test"


# Where the English is checked.
PLACES = ["*.md", "tutorials/*.md", "finetune/*.py", "generate/*.py", "eval/*.py"]
PLACES += ["lit_llm/*.py"]
PLACES += [f"lit_llm/{room.name}/*.py" for room in sorted((REPOSITORY / "lit_llm").iterdir()) if any(room.glob("*.py"))]
# Phrases that remain, by file.
EXCEPTIONS: dict[str, list[str]] = {}


@pytest.mark.parametrize("place", PLACES)
def test_the_english_is_that_of_the_python_documentation(place):
    paths = sorted(REPOSITORY.glob(place))
    assert paths
    for path in paths:
        name = str(path.relative_to(REPOSITORY))
        found = foreign_phrases(path)
        assert {f.phrase for f in found} <= set(EXCEPTIONS.get(name, [])), (name, found)
