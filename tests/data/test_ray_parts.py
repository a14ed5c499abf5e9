"""Parts prepared by Ray: the bytes of one process on two nodes, with a killed worker, and mistakes in one line."""

import json
import sys
from pathlib import Path

import pytest
from rough_parts import rough

from lit_llm.args.data import PrepareJsonArgs
from lit_llm.data import sources
from lit_llm.data.prepare import prepare
from lit_llm.data.sources import row_files
from lit_llm.errors import DataError, LitError


@pytest.fixture
def rows(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "PART_BYTES", 3000)
    found = [{"instruction": f"q{i}", "output": f"a{i % 7} é", "note": i} for i in range(300)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return "rows.jsonl"


def run(source, destination, **options):
    args = PrepareJsonArgs(json_path="", destination_path=destination, write_dropped=True, **options)
    prepare(args, source)
    return {path.name: path.read_bytes() for path in Path(destination).iterdir()}


@pytest.fixture
def cluster(monkeypatch):
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def test_two_nodes_write_the_bytes_of_one_process(rows, cluster):
    whole = run(row_files(rows), "whole", workers=1)
    mark = Path("mark").resolve()
    assert run(rough(row_files(rows), 2, mark), "out", ray=cluster) == whole
    assert mark.exists()  # its worker was killed once
    assert sorted(path.name for path in Path().iterdir()) == ["mark", "out", "rows.jsonl", "whole"]
    with open(rows, "a") as file:
        file.write("{")
    with pytest.raises(DataError, match=r"^rows\.jsonl:301:2: not JSON"):
        run(row_files(rows), "out", ray=cluster)


def test_without_ray_or_a_cluster_the_next_step_is_named(rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match="needs the package ray: pip install ray"):
        run(row_files(rows), "out", ray="auto")
    with pytest.raises(LitError, match="`ray` cannot be combined with `workers`"):
        PrepareJsonArgs(json_path="", ray="auto", workers=2)


def test_a_cluster_that_does_not_run_is_refused(rows):
    pytest.importorskip("ray", reason="ray is not installed")
    with pytest.raises(LitError, match=r"`ray` auto is not a running cluster \(.*\)\. Start one: ray start --head"):
        run(row_files(rows), "out", ray="auto")
