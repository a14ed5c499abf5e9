"""Mutated rows: read alike by preparation and by finetuning, or refused by both in words; what is kept can be read again."""

import csv
import gzip
import io
import json
import re

import pytest
from fuzz import as_json, fuzz, mutated, mutated_bytes, mutated_json, result_or_clear_error
from hypothesis import strategies as st

from lit_llm.args.data import PrepareCsvArgs, PrepareJsonArgs
from lit_llm.data.examples import tokenize
from lit_llm.data.file_readers import csv_rows, json_rows, rows_of
from lit_llm.data.prepare import prepare_table
from lit_llm.data.rows import COLUMNS, read_records, to_record
from lit_llm.errors import DataError, LitError
from lit_llm.text.tokenizer import Tokenizer

CHAT = [{"role": "user", "content": "a", "name": "ann"}, {"from": "gpt", "value": [{"type": "text", "text": "b"}], "weight": 1}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
ROWS = [
    {"instruction": "a", "input": "i", "output": "b", "system": "s", "history": [["c", "d"]], "id": 3},
    {"messages": [{"role": "system", "content": "s"}, *CHAT, *CHAT], "tools": TOOLS, "chat_template_kwargs": {"x": True}},
    {"conversations": json.dumps(CHAT), "system": "s", "documents": [{"text": "x"}]},
    {"prompt": "a", "input": "i", "system": "s", "chosen": "b", "rejected": "c"},
    {"prompt": CHAT[:1], "chosen": CHAT, "rejected": {"role": "assistant", "content": "c", "thinking": ""}},
    {"text": "a", "continues": True},
]
TABLE = [["Instruction", "input", "output", "messages"], ["a", "b;c", "d\ne", ""], ["", "", "", json.dumps(CHAT)]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    tokenizer = Tokenizer(checkpoint)
    tokenizer.chat_template = (
        "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}<{{ m.role }}>"
        "{{ m.thinking }}{{ m.content }}|{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


def lenient(path, rows):
    """Return the records of all rows, or the first reason why there are none; without its place."""
    try:
        return [to_record(row, COLUMNS) for row in rows(path)]
    except DataError as error:
        return re.sub(r"^\S+?\.\w+(:\d+)*:? ", "", str(error))


LINES = st.sampled_from(ROWS).flatmap(mutated_json) | st.sampled_from([as_json(row) for row in ROWS])
LISTS = st.lists(st.sampled_from(ROWS).flatmap(mutated), max_size=3).map(as_json)


@fuzz(st.lists(LINES, min_size=1, max_size=3))
def test_mutated_json_lines(folder, lines):
    path = folder / "train.jsonl"
    path.write_bytes(b"\n".join(lines))
    with result_or_clear_error(str(path), errors=(DataError,)):
        assert read_records(path) == lenient(path, json_rows)
    if not lines[0].strip(b"\xef\xbb\xbf \t").startswith(b"["):  # a list of rows is for preparation only
        strict = lenient(path, read_records)
        assert strict == lenient(path, json_rows) or strict == "is empty: there is nothing to train on"


@fuzz(LISTS | LISTS.flatmap(mutated_bytes))
def test_mutated_json_lists(folder, content):
    path = folder / "rows.json"
    path.write_bytes(content)
    with result_or_clear_error(str(path), errors=(DataError,)):
        for row in json_rows(path):
            lenient(path, lambda _, row=row: [row])


@fuzz(st.sampled_from(ROWS).flatmap(mutated))
def test_a_record_is_the_record_of_itself(row):
    with result_or_clear_error(errors=(DataError,)):
        record = to_record(json.loads(json.dumps(row)), COLUMNS)
        assert to_record(record, COLUMNS) == record


@fuzz(st.sampled_from(ROWS).flatmap(mutated), st.sampled_from(["alpaca", "llama2", "chat_template"]))
def test_mutated_rows_become_tokens(tokenizer, row, style):
    with result_or_clear_error(errors=(LitError,)):
        tokenize(to_record(json.loads(json.dumps(row)), COLUMNS), style, tokenizer, True)


def compressed(kind):
    """Rows in a compressed file or in a table."""
    if kind == "gz":
        return gzip.compress(b"\n".join(map(as_json, ROWS)))
    pyarrow = pytest.importorskip("pyarrow")
    stream = pyarrow.BufferOutputStream()
    if kind == "zst":
        with pyarrow.CompressedOutputStream(stream, "zstd") as file:
            file.write(b"\n".join(map(as_json, ROWS)))
    else:
        table = pyarrow.Table.from_pylist([{"messages": CHAT[:1], "instruction": "é", "output": "b", "score": 0.5}] * 9)
        if kind == "parquet":
            import pyarrow.parquet

            pyarrow.parquet.write_table(table, stream)
        else:
            with (pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream)(stream, table.schema) as file:
                file.write(table)
    return stream.getvalue().to_pybytes()


SUFFIXES = {"gz": "jsonl.gz", "zst": "jsonl.zst", "parquet": "parquet", "file": "arrow", "stream": "arrow"}


@fuzz(st.sampled_from([*SUFFIXES]), st.data())
def test_mutated_compressed_files_and_tables(folder, kind, data):
    path = folder / f"rows.{SUFFIXES[kind]}"
    path.write_bytes(data.draw(mutated_bytes(compressed(kind))))
    with result_or_clear_error(str(path), errors=(DataError,)):
        for row in rows_of(path):
            lenient(path, lambda _, row=row: [row])


def as_csv(table, delimiter):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows(table)
    return file.getvalue().encode("utf-8", "surrogatepass")


cells = st.lists(st.lists(st.sampled_from([c for row in TABLE for c in row]) | st.text(max_size=5), max_size=5), max_size=4)


@fuzz(st.just(TABLE) | cells, st.sampled_from(",;\t|"), st.data())
def test_mutated_csv(folder, table, delimiter, data):
    path, content = folder / "rows.csv", as_csv(table, delimiter)
    path.write_bytes(data.draw(st.just(content) | mutated_bytes(content)))
    with result_or_clear_error(str(path), errors=(DataError,)):
        for row in csv_rows(path):
            lenient(path, lambda _, row=row: [row])


@fuzz(st.sampled_from(["json", "csv"]), st.data())
def test_mutated_files_are_prepared(folder, kind, data):
    rows = st.lists(st.sampled_from(ROWS).flatmap(mutated), max_size=4).map(lambda found: b"\n".join(map(as_json, found)))
    content = data.draw(rows if kind == "json" else cells.map(lambda table: as_csv(table, ",")))
    path, out = folder / f"rows.{kind}", folder / "out"
    path.write_bytes(content)
    options = {"destination_path": out, "write_dropped": data.draw(st.booleans()), "near_duplicates": 0.8}
    args = PrepareCsvArgs(csv_path=str(path), **options) if kind == "csv" else PrepareJsonArgs(json_path=str(path), **options)
    with result_or_clear_error(str(path), errors=(LitError,)):
        prepare_table(args)
        about = json.loads((out / "meta.json").read_text())
        files = [out / f"{name}.jsonl" for name, n in about["rows"].items() if n]
        assert out / "train.jsonl" in files
        assert [len(read_records(file)) for file in files] == [n for n in about["rows"].values() if n]
