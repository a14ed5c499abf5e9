"""Rows as people write them: each is read as its plain form, by preparation and by finetuning alike, or refused by both."""

import codecs
import csv
import io
import json

import pytest

from lit_llm.data.file_readers import csv_rows, json_rows, rows_of
from lit_llm.data.rows import COLUMNS, iter_records, read_records, to_record

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
PLAIN = {"instruction": "a", "output": "b", "input": ""}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def part(text):
    return {"type": "text", "text": text, "image": None}


SAME = {
    "roles in capitals": ({"messages": [{**CHAT[0], "role": "USER"}, {**CHAT[1], "role": " Assistant"}]}, {"messages": CHAT}),
    "developer": (
        {"messages": [{"role": "developer", "content": "s"}, *CHAT]},
        {"messages": [{"role": "system", "content": "s"}, *CHAT]},
    ),
    "parts": ({"messages": [CHAT[0], {**CHAT[1], "content": [part("b1"), part(" b2")]}]},
              {"messages": [CHAT[0], {**CHAT[1], "content": "b1 b2"}]}),
    "messages as JSON": ({"messages": json.dumps(CHAT)}, {"messages": CHAT}),
    "conversations as JSON": ({"conversations": json.dumps(CHAT), "messages": None}, {"messages": CHAT}),
    "null next to ShareGPT's names": (
        {"conversations": [{"role": None, "from": "human", "value": "a", "content": None}, CHAT[1]]}, {"messages": CHAT},
    ),
    "tools": ({"messages": CHAT, "tools": TOOLS}, {"messages": CHAT, "tools": TOOLS}),
    "tools as JSON": ({"messages": CHAT, "tools": json.dumps(TOOLS)}, {"messages": CHAT, "tools": TOOLS}),
    "no tools": ({"messages": CHAT, "tools": [], "documents": None}, {"messages": CHAT}),
    "fields of turns": (
        {"messages": [CHAT[0], {**CHAT[1], "reasoning_content": "r", "mood": "good", "audio": None}]},
        {"messages": [CHAT[0], {**CHAT[1], "reasoning_content": "r", "mood": "good"}]},
    ),
    "prompt with fields": (
        {"prompt": [{**CHAT[0], "name": "ann"}], "chosen": "x", "rejected": "y"},
        {"prompt": [{**CHAT[0], "name": "ann"}], "chosen": "x", "rejected": "y"},
    ),
    "thought of a pair": (
        {"chosen": [CHAT[0], {**CHAT[1], "content": "b", "thinking": "x"}], "rejected": "c"},
        {"prompt": CHAT[0]["content"], "chosen": "<think>\nx\n</think>\n\nb", "rejected": "c"},
    ),
    "capitals": ({"Instruction": "a", " OUTPUT ": "b"}, PLAIN),
    "exact name first": ({"output": "b", "Output": "c", "instruction": "a"}, PLAIN),
    "NaN of pandas": ({"instruction": "a", "output": "b", "input": float("nan")}, PLAIN),
    "text next to an instruction": ({**PLAIN, "text": "all of it"}, PLAIN),
    "a row with messages and text": ({"messages": CHAT, "text": "all of it"}, {"messages": CHAT}),
    "system next to turns": ({"messages": CHAT, "system": "s"}, {"messages": [{"role": "system", "content": "s"}, *CHAT]}),
}  # fmt: skip

REFUSED = {
    "image": (
        {"messages": [{**CHAT[0], "content": [{"type": "image_url", "image_url": "x"}]}, CHAT[1]]},
        "part that is not text",
    ),
    "broken JSON": ({"messages": "[{"}, "'messages' must be a list"),
    "name twice in JSON": ({"messages": '[{"role": "user", "role": "user"}]'}, "'role' occurs twice"),
    "two spellings": ({"Output": "b", "OUTPUT": "c", "instruction": "a"}, "'output' twice"),
    "text without its question": ({"output": "b", "text": "c"}, "has no 'instruction'"),
    "text without its messages": ({"messages": None, "text": "c"}, "'messages' must be a list"),
    "turns without any": ({"messages": [], "text": "c"}, "'messages' must be a list"),
    "two thoughts": ({"messages": [CHAT[0], {**CHAT[1], "content": "<think>x</think>b", "thinking": "y"}]}, "two different"),
    "half a character in a field": ({"messages": [CHAT[0], {**CHAT[1], "thinking": "\ud800"}]}, "unpaired surrogate"),
    "half a character in a name": ({"messages": [CHAT[0], {**CHAT[1], "\ud800": "x"}]}, "unpaired surrogate"),
}


@pytest.mark.parametrize("kind", SAME)
def test_a_row_is_read_as_its_plain_form(tmp_path, kind):
    row, record = SAME[kind]
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row))
    assert [to_record(found, COLUMNS) for found in json_rows(path)] == [record]
    assert read_records(path) == [record]
    assert to_record(record, COLUMNS) == record


@pytest.mark.parametrize("kind", REFUSED)
def test_a_row_is_refused_by_both(tmp_path, kind):
    row, reason = REFUSED[kind]
    path = tmp_path / "train.jsonl"
    path.write_text(f"{json.dumps(PLAIN)}\n\n{json.dumps(row)}\n")
    with pytest.raises(ValueError, match=reason):
        to_record([*json_rows(path)][1], COLUMNS)
    with pytest.raises(ValueError, match=rf"train\.jsonl:3: .*{reason}"):
        read_records(path)


@pytest.mark.parametrize("list_of", [False, True])
@pytest.mark.parametrize(
    "bad",
    [
        '{"instruction": "a", "output": "b", "output": "c"}',
        '{"messages": [{"role": "user", "content": "a", "content": "x"}, {"role": "assistant", "content": "b"}]}',
        '{"instruction": "a", "output": "b", "output": "b"}',
    ],
)
def test_a_name_twice_in_a_row_drops_the_row(tmp_path, bad, list_of):
    good = json.dumps(PLAIN)
    path = tmp_path / "train.jsonl"
    path.write_text(f"[{good},\n{bad},\n{good}]" if list_of else f"{good}\n{bad}\n{good}\n")
    first, second, third = json_rows(path)
    assert first == third == PLAIN
    with pytest.raises(ValueError, match=r"the name '(output|content)' occurs twice"):
        to_record(second, COLUMNS)
    if not list_of:
        with pytest.raises(ValueError, match=r"train\.jsonl:2: the name '(output|content)' occurs twice"):
            read_records(path)


@pytest.mark.parametrize("start", [b"", codecs.BOM_UTF8, b"\n\n", codecs.BOM_UTF8 + b"\r\n"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_marks_and_line_ends_do_not_matter(tmp_path, start, end):
    path = tmp_path / "train.jsonl"
    path.write_bytes(start + end.join([json.dumps(PLAIN).encode()] * 2) + end)
    assert read_records(path) == [*json_rows(path)] == [PLAIN] * 2


def written(table, delimiter, encoding="utf-8", quoting=csv.QUOTE_MINIMAL):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, quoting=quoting).writerows(table)
    return file.getvalue().encode(encoding)


TABLE = [["Instruction", "Input", "Output"], ["a, b; c\td|e", "x\ny", '"q"'], ["d", "", "é"], ["a,b,c,d", "1,5", "2;5;6;7;8"]]


@pytest.mark.parametrize("name", ["rows.csv", "ROWS.CSV", "rows.tsv"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_as_the_world_writes_it(tmp_path, delimiter, encoding, quoting, name):
    (tmp_path / name).write_bytes(written(TABLE, delimiter, encoding, quoting))
    records = [to_record(row, COLUMNS) for row in rows_of(tmp_path / name)]
    assert records == [{"instruction": a, "input": b, "output": c} for a, b, c in TABLE[1:]]


@pytest.mark.parametrize("header", ["output,instruction,output", "output;id;id;instruction", '"a b"\t"a b"'])
def test_a_column_twice_is_refused_by_name(tmp_path, header):
    (tmp_path / "rows.csv").write_text(f"{header}\n1,2,3,4\n")
    twice = {"output,instruction,output": "'output'", "output;id;id;instruction": "'id'", '"a b"\t"a b"': "'a b'"}[header]
    with pytest.raises(ValueError, match=f"two columns with the same name: {twice}"):
        next(csv_rows(tmp_path / "rows.csv"))


def test_columns_without_a_name_may_repeat(tmp_path):
    (tmp_path / "rows.csv").write_text("instruction;output;;\na;b;;\n")
    assert to_record(next(csv_rows(tmp_path / "rows.csv")), COLUMNS) == PLAIN


@pytest.mark.parametrize("columns", [{"instruction": "title", "output": "text"}, {"instruction": "title", "output": "story"}])
@pytest.mark.parametrize("row", [{"text": "x"}, {"title": None, "text": "x"}, {"title": "", "text": "x", "story": "x"}])
def test_a_row_without_its_question_does_not_become_text(columns, row):
    with pytest.raises(ValueError, match=r"has no '(title|story)'|'instruction' (is empty|must be a string)"):
        to_record(row, COLUMNS | columns)


def test_ignored_fields_are_counted(tmp_path):
    from collections import Counter

    rows = [
        {**PLAIN, "id": 1, "tools": "hammer, nail", "history": "modern"},
        {"messages": CHAT, "id": 2, "input": "i", "conversations": CHAT, "note": None},
        {"prompt": "q", "chosen": [CHAT[0] | {"content": "q"}, {**CHAT[1], "id": 7}], "rejected": "c", "output": "o"},
        {"text": "x", "system": "s", "tools": TOOLS},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ignored = Counter()
    records = list(iter_records(tmp_path / "train.jsonl", ignored))
    assert ignored == {"id": 3, "tools": 2, "history": 1, "input": 1, "conversations": 1, "output": 1, "system": 1}
    assert records[0] == PLAIN


@pytest.mark.parametrize("start", ["PK", "BZ"])
def test_a_column_called_like_an_archive_is_read(tmp_path, start):
    (tmp_path / "rows.csv").write_text(f"{start},instruction,output\n1,a,b\n")
    assert to_record(next(csv_rows(tmp_path / "rows.csv")), COLUMNS) == PLAIN
