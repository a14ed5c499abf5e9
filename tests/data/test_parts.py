"""Parts: the same bytes by any number of processes, and after one was killed; nothing is left behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from rough_parts import rough

from lit_llm.args.data import PrepareJsonArgs
from lit_llm.data import parts, sources
from lit_llm.data.file_readers import json_rows
from lit_llm.data.prepare import prepare
from lit_llm.data.sources import row_files
from lit_llm.errors import DataError

PART_BYTES = 3000
WORDS = "the red cat sees a small dog in the big house of the river and likes it"
LINES = [
    *({"instruction": WORDS, "output": f"good {end}"} for end in ("", ".", "!")),
    *({"instruction": f"q{i % 60} é", "output": f"a{i % 60}\u2028" + "xy" * (i % 60), "note": i} for i in range(200)),
    {"instruction": "no answer"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "mood": "good"},
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    ["not a row\t"],
]
OPTIONS = {"write_dropped": True, "near_duplicates": 0.9, "max_examples": 40, "max_chars": 100, "val_split_fraction": 0.3}


@pytest.fixture
def rows(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "PART_BYTES", PART_BYTES)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LINES))
    return "rows.jsonl"


def run(source, workers=1, destination="out", **options):
    """Prepare, and return the bytes of each file."""
    args = PrepareJsonArgs(json_path="", destination_path=destination, workers=workers, **{**OPTIONS, **options})
    prepare(args, source)
    return {path.name: path.read_bytes() for path in Path(destination).iterdir()}


def in_one_part(monkeypatch, name):
    with monkeypatch.context() as change:
        change.setattr(sources, "PART_BYTES", 2**25)
        source = row_files(name)
        assert len(source.parts) == 1
        return run(source, destination="whole")


@pytest.mark.parametrize("workers", [1, 2])
def test_several_processes_write_the_bytes_of_one(rows, monkeypatch, workers):
    whole = in_one_part(monkeypatch, rows)
    assert {*whole} == {"train.jsonl", "val.jsonl", "dropped.jsonl", "meta.json"}
    dropped = json.loads(whole["meta.json"])["dropped"]
    assert dropped["duplicate"] > 10  # most of them in another part than the first
    assert len(dropped) == 7
    source = row_files(rows)
    assert len(source.parts) > 4
    assert run(source, workers) == whole
    assert sorted(os.listdir()) == ["out", "rows.jsonl", "whole"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n \n"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n"])
def test_parts_of_any_size_have_each_line_once(monkeypatch, tmp_path, start, end):
    path = tmp_path / "rows.jsonl"
    path.write_bytes((start + end.join('{"é": "%s"}' % ("x" * i) for i in range(12))).encode())
    for size in range(1, path.stat().st_size, 5):
        monkeypatch.setattr(sources, "PART_BYTES", size)
        found = [row for part in row_files(str(path)).parts for _, rows in part.files() for row in rows]
        assert found == [*json_rows(path)] == [{"é": "x" * i} for i in range(12)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_line_is_reported_with_its_number_in_the_file(rows, workers):
    with open(rows, "a") as file:
        file.write('\n{"a": \n')
    with pytest.raises(DataError, match=rf"rows\.jsonl:{len(LINES) + 2}:6: not JSON"):
        run(row_files(rows), workers)
    assert os.listdir() == [rows]


def test_the_first_error_in_the_file_is_reported(rows):
    lines = Path(rows).read_text().splitlines()
    lines[30], lines[-1] = "{", "{"
    Path(rows).write_text("\n".join(lines))
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"rows\.jsonl:31:2: not JSON"):
            run(row_files(rows), workers)


def test_a_killed_worker_is_reported_and_its_part_is_made_again(rows, monkeypatch):
    whole = in_one_part(monkeypatch, rows)
    with pytest.raises(ChildProcessError, match="a process that prepares rows was killed, perhaps for its memory"):
        run(rough(row_files(rows), 3, Path("mark")), 2)
    assert not Path("out").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in Path(".parts-out").glob("*.part")}
    written = []
    write = parts.write_part
    monkeypatch.setattr(parts, "write_part", lambda task, path: (written.append(path.name), write(task, path)))
    source = rough(row_files(rows), 3, Path("mark"))
    assert run(source) == whole
    assert sorted([*kept, *written]) == [f"{i:06}.part" for i in range(len(source.parts))]
    assert "000003.part" in written
    assert not Path(".parts-out").exists()


RESUMED = """
import sys
from pathlib import Path
from lit_llm.args.data import PrepareJsonArgs
from lit_llm.data import sources
from lit_llm.data.prepare import prepare
from rough_parts import rough

if __name__ == "__main__":
    sources.PART_BYTES = {PART_BYTES}
    args = PrepareJsonArgs(json_path="", destination_path="out", workers=int(sys.argv[1]), **{OPTIONS})
    prepare(args, rough(sources.row_files("rows.jsonl"), 4, Path("mark"), sleep=sys.argv[2] == "sleep"))
"""


def start(*arguments):
    Path("resumed.py").write_text(RESUMED.replace("{PART_BYTES}", str(PART_BYTES)).replace("{OPTIONS}", repr(OPTIONS)))
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/tests/support"}
    return subprocess.Popen([sys.executable, "resumed.py", *arguments], env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("change", [None, "row", "option"])
def test_a_killed_preparation_resumes_with_equal_bytes(rows, monkeypatch, change):
    assert start("1", "no").wait(120) == -9
    done = sorted(path.name for path in Path(".parts-out").glob("*.part"))
    assert done == [f"{i:06}.part" for i in range(4)]
    if change == "row":  # the parts of the old file must not be used
        Path(rows).write_text(Path(rows).read_text().replace("q1 ", "q9 "))
    options = {"seed": 1} if change == "option" else {}
    written = []
    write = parts.write_part
    monkeypatch.setattr(parts, "write_part", lambda task, path: (written.append(path.name), write(task, path)))
    found = run(row_files(rows), **options)
    assert (written[0] == "000004.part") == (change is None)
    assert found == run(row_files(rows), destination="again", **options)
    assert sorted(os.listdir()) == ["again", "mark", "out", "resumed.py", rows]


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_workers_end_with_a_killed_preparation(rows):
    main = start("2", "sleep")
    deadline = time.monotonic() + 60
    while not (Path("mark").exists() and Path("mark").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    worker = Path("mark").read_text()
    assert is_running(worker)
    main.kill()
    main.wait()
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)


def test_parts_of_an_interrupted_preparation_are_removed_when_they_are_not_needed(rows, monkeypatch):
    Path(".parts-out").mkdir()
    Path(".parts-out/000001.part").write_text("broken")
    assert run(row_files(rows)) == in_one_part(monkeypatch, rows)
    Path(".parts-out").mkdir()
    run(row_files(rows))  # up to date
    assert not Path(".parts-out").exists()
