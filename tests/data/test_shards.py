"""Shards: formats and compressions as other libraries write them, folders, patterns and stores, and incomplete sets."""

import gzip
import json
import sys
import tracemalloc

import pytest

from lit_llm.args.data import PrepareCsvArgs, PrepareJsonArgs
from lit_llm.data.file_readers import rows_of
from lit_llm.data.prepare import prepare_table, prepared
from lit_llm.data.shards import files_of
from lit_llm.data.sources import text_files
from lit_llm.errors import DataError

ROWS = [{"instruction": f"q{i}", "output": f"a\u2028{i}", "id": i} for i in range(60)]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def csv(rows):
    return ("instruction;output\n" + "".join(f"{row['instruction']};{row['output']}\n" for row in rows)).encode()


def zstd(content):
    pyarrow = pytest.importorskip("pyarrow")
    stream = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(stream, "zstd") as compressed:
        compressed.write(content)
    return stream.getvalue().to_pybytes()


def prepare(source, **options):
    """The records of a source, in order, and its meta.json."""
    options = {"val_split_fraction": 0, "destination_path": "out", **options}
    prepare_table(PrepareJsonArgs(json_path=str(source), **options))
    with open("out/train.jsonl") as file, open("out/meta.json") as about:
        return [json.loads(line) for line in file], json.load(about)


RECORDS = [{"instruction": row["instruction"], "output": row["output"], "input": ""} for row in ROWS]


def write_arrow(folder, rows):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).save_to_disk(folder, num_shards=3)


def write_feather(folder, rows):
    feather = pytest.importorskip("pyarrow.feather")
    pandas = pytest.importorskip("pandas")
    folder.mkdir()
    for i in range(3):
        feather.write_feather(pandas.DataFrame(rows[20 * i : 20 * i + 20]), folder / f"{i}.feather")


def write_parquet(folder, rows):
    datasets = pytest.importorskip("datasets")
    folder.mkdir()
    for i in range(3):
        datasets.Dataset.from_list(rows[20 * i : 20 * i + 20]).to_parquet(folder / f"train-{i:05}-of-00003-{i}f{i}.parquet")


def write_files(suffix, content, compress=bytes):
    def write(folder, rows):
        folder.mkdir()
        for i in range(3):
            (folder / f"train-{i + 1:05}-of-00003{suffix}").write_bytes(compress(content(rows[20 * i : 20 * i + 20])))
        (folder / "README.md").write_text("about")
        (folder / ".hidden.jsonl").write_text("broken")

    return write


WRITERS = {
    "jsonl": write_files(".jsonl", jsonl),
    "jsonl.gz": write_files(".jsonl.gz", jsonl, gzip.compress),
    "two gzip streams": write_files(".jsonl.gz", jsonl, lambda c: gzip.compress(c[:99]) + gzip.compress(c[99:])),
    "jsonl.zst": write_files(".jsonl.zst", jsonl, zstd),
    "two zstd frames": write_files(".jsonl.zst", jsonl, lambda content: zstd(content[:99]) + zstd(content[99:])),
    "json.gz": write_files(".json.gz", lambda rows: json.dumps(rows).encode(), gzip.compress),
    "csv.zst": write_files(".CSV.zst", csv, zstd),
    "csv.gz": write_files(".csv.gz", csv, gzip.compress),
    "arrow": write_arrow,
    "feather": write_feather,
    "parquet": write_parquet,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_of_shards_is_read_in_order(tmp_path, kind):
    WRITERS[kind](tmp_path / "shards", ROWS)
    assert prepare("shards")[0] == RECORDS


@pytest.mark.parametrize("pattern", ["shards/*.jsonl.gz", "**/*.gz", "shards/train-0000[1-3]*"])
def test_a_pattern_names_shards(tmp_path, pattern):
    WRITERS["jsonl.gz"](tmp_path / "shards", ROWS)
    records, meta = prepare(pattern)
    assert records == RECORDS
    assert meta["source"] == pattern
    assert prepare("shards/*1-of-00003*")[0] == RECORDS[:20]  # the others exist


def test_csv_and_text_may_be_shards(tmp_path):
    WRITERS["csv.gz"](tmp_path / "shards", ROWS)
    prepare_table(PrepareCsvArgs(csv_path="shards", destination_path="csv", val_split_fraction=0))
    assert (tmp_path / "csv/train.jsonl").read_bytes() == b"".join(jsonl_line(r) for r in RECORDS)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "b.txt.gz").write_bytes(gzip.compress(b"second"))
    (tmp_path / "books" / "a.txt").write_bytes(b"first")
    (part,) = text_files("books", None, 2000).parts
    assert [row for _, rows in part.files() for row in rows] == [{"text": "first"}, {"text": "second"}]


def jsonl_line(record):
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.zst", "rows.feather"])
def test_finetuning_prepares_compressed_files_and_arrow(tmp_path, name):
    if name.endswith("feather"):
        write_feather(tmp_path / "shards", ROWS)
        (tmp_path / "shards/0.feather").rename(name)
    else:
        content = gzip.compress(jsonl(ROWS[:20])) if name.endswith("gz") else zstd(csv(ROWS[:20]))
        (tmp_path / name).write_bytes(content)
    folder = prepared(tmp_path / name)
    assert folder.name.startswith("rows-")
    assert sum(json.loads((folder / "meta.json").read_text())["rows"].values()) == 20


def test_missing_values_and_times_of_a_table_are_read(tmp_path):
    pandas = pytest.importorskip("pandas")
    turns = [{"role": "user", "content": "a", "at": pandas.Timestamp(0)}, {"role": "assistant", "content": "b", "score": 0.5}]
    table = {"instruction": ["a"], "output": ["b"], "input": [float("nan")], "score": [float("nan")], "image": [b"x" * 9]}
    pandas.DataFrame(table).to_parquet(tmp_path / "a.parquet")
    pandas.DataFrame({"messages": [turns]}).to_parquet(tmp_path / "b.parquet")
    first, second = (next(rows_of(tmp_path / f"{name}.parquet")) for name in "ab")
    assert first == {"instruction": "a", "output": "b", "input": None, "score": None, "image": "9 bytes"}
    assert second["messages"][0]["at"] == "1970-01-01 00:00:00"
    assert prepare("a.parquet")[0] == [{"instruction": "a", "output": "b", "input": ""}]


def test_one_large_batch_is_read_with_little_memory(tmp_path):
    """30 MB in one batch: Arrow's memory is mapped, and rows are made by the thousand."""
    feather = pytest.importorskip("pyarrow.feather")
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"text": [f"{i} {'x' * 1000}" for i in range(30_000)]})
    feather.write_feather(table, tmp_path / "a.arrow", compression="uncompressed", chunksize=10**9)
    tracemalloc.start()
    assert sum(1 for _ in rows_of(tmp_path / "a.arrow")) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000 < (tmp_path / "a.arrow").stat().st_size


def shards(tmp_path, files):
    (tmp_path / "shards").mkdir()
    for name, content in files.items():
        (tmp_path / "shards" / name).write_bytes(content)


GOOD = jsonl(ROWS[:2])
BAD_SETS = {
    "gap": (
        {"x-00000-of-00003.jsonl": GOOD, "x-00002-of-00003.jsonl": GOOD},
        "shards/x-00001-of-00003 is missing: there are 2",
    ),
    "no last": ({"x-00000-of-00002.jsonl": GOOD}, "shards/x-00001-of-00002 is missing"),
    "no first": ({"x-2-of-2.jsonl": GOOD}, "shards/x-1-of-2 is missing"),
    "empty": ({}, "names no files"),
    "formats": ({"a.jsonl": GOOD, "b.csv": csv(ROWS)}, "several formats: .jsonl (1), .csv (1)"),
    "splits": ({"train.jsonl": GOOD, "test.jsonl": GOOD}, "several splits: test (1), train (1)"),
    "validation": ({"validation-0.jsonl": GOOD, "x.jsonl": GOOD}, "several splits: val (1), others (1)"),
    "broken shard": ({"a.jsonl": GOOD, "b.jsonl": GOOD + b"{"}, "shards/b.jsonl:3:2: not JSON"),
    "header": ({"a.csv": csv(ROWS), "b.csv": b"q,answer\n1,2\n"}, "shards/b.csv: the columns instruction, output are missing"),
    "not zstd": ({"a.jsonl.zst": b"\x28\xb5\x2f\xfdabc"}, "shards/a.jsonl.zst is damaged"),
    "not arrow": ({"a.arrow": b"ARROW1 no"}, "shards/a.arrow is not a table, or damaged"),
    "not parquet": ({"a.parquet": b"PAR1 no"}, "shards/a.parquet is not a table, or damaged"),
}


@pytest.mark.parametrize("kind", BAD_SETS)
def test_a_set_that_is_not_whole_is_refused(tmp_path, kind):
    pytest.importorskip("pyarrow")
    files, message = BAD_SETS[kind]
    shards(tmp_path, files)
    with pytest.raises(DataError) as refused:
        prepare("shards")
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cut", [1, 9, 200])
def test_a_zstd_file_that_is_cut_off_is_refused(tmp_path, cut):
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(jsonl({"i": f"{i**9}"} for i in range(9999)))[:-cut])
    with pytest.raises(DataError, match=r"a\.jsonl\.zst is damaged \(.*\)\. Download or compress it again"):
        list(rows_of(tmp_path / "a.jsonl.zst"))


@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_a_column_that_changes_its_type_is_refused(tmp_path, kind):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    (tmp_path / "shards").mkdir()
    tables = ([{"instruction": "a", "output": "b", "id": 1}], [{"instruction": "c", "Output": 7, "id": "x"}])
    for i, table in enumerate(tables):
        getattr(pandas.DataFrame(table), f"to_{kind}")(tmp_path / "shards" / f"{i}.{kind}")
    tables[1][0]["output"] = tables[1][0].pop("Output")
    getattr(pandas.DataFrame(tables[1]), f"to_{kind}")(tmp_path / "shards" / f"1.{kind}")
    with pytest.raises(DataError, match=rf"shards/1\.{kind}: the column 'output' is int64, but (large_)?string in shards/0"):
        prepare("shards")
    getattr(pandas.DataFrame({"instruction": ["c"], "output": ["d"], "input": [None], "id": ["x"]}), f"to_{kind}")(
        tmp_path / "shards" / f"1.{kind}"
    )
    assert len(prepare("shards")[0]) == 2  # `id` is not used, and missing values have no type


def test_a_file_of_which_no_row_is_used_is_named(tmp_path, capsys):
    shards(tmp_path, {"a.jsonl": GOOD, "b.jsonl": jsonl([{"instruction": "x", "output": 3}] * 2), "c.jsonl": b""})
    records, meta = prepare("shards")
    assert len(records) == 2
    assert meta["dropped"] == {"'output' must be a string": 2}
    assert "warning: none of the 2 rows of shards/b.jsonl is used: 'output' must be a string" in capsys.readouterr().err


def test_files_of_a_store_are_fetched_once(tmp_path, capsys):
    from fsspec.implementations.memory import MemoryFileSystem

    store = MemoryFileSystem()
    for i in range(3):
        store.pipe(f"/bucket/x-{i}-of-3.jsonl.gz", gzip.compress(jsonl(ROWS[20 * i : 20 * i + 20])))
    store.pipe("/bucket/README.md", b"about")
    try:
        assert prepare("memory://bucket")[0] == RECORDS
        assert prepare("memory://bucket/*.gz")[0] == RECORDS
        assert prepare("memory://bucket/x-0-of-3.jsonl.gz")[0] == RECORDS[:20]
        store.rm("/bucket/x-1-of-3.jsonl.gz")
        for source in ("memory://bucket", "memory://bucket/*.gz"):
            with pytest.raises(DataError, match=r"memory://bucket/x-1-of-3 is missing: there are 2 of 3 shards"):
                prepare(source)
        for source in ("memory://bucket/absent.jsonl", "memory://nothing/*.jsonl"):
            with pytest.raises(DataError, match=r"memory://\S* (does not exist|names no files)"):
                prepare(source)
    finally:
        store.rm("/bucket", recursive=True)
    assert not list((tmp_path / "data/downloads").glob("*.part"))
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "package", "message"),
    [
        ("s3://bucket/*.parquet", "s3fs", "s3://bucket/*.parquet: Install s3fs to access S3: pip install s3fs"),
        ("gs://bucket/a.jsonl", "gcsfs", "pip install gcsfs"),
        ("nowhere://a.jsonl", "fsspec.nowhere", "nowhere://a.jsonl: Protocol not known: nowhere. Use a path, https://"),
    ],
)
def test_a_store_that_needs_a_package_names_it(monkeypatch, source, package, message):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError) as refused:
        prepare(source)
    assert message in str(refused.value)


def test_a_store_that_refuses_is_reported_in_one_line(monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    def refuse(*_):
        raise RuntimeError("no credentials\nfor you")

    monkeypatch.setattr(MemoryFileSystem, "isdir", refuse)
    with pytest.raises(
        DataError, match=r"memory://x cannot be read \(RuntimeError: no credentials\)\. Check address and login"
    ):
        prepare("memory://x")


def test_a_file_whose_name_looks_like_a_pattern_is_read(tmp_path):
    (tmp_path / "rows[1].jsonl").write_bytes(GOOD)
    assert len(prepare("rows[1].jsonl")[0]) == 2
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl does not exist"):
        prepare("absent.jsonl")
    with pytest.raises(DataError, match=r"absent\[1\]\.jsonl names no files"):
        files_of("absent[1].jsonl")
