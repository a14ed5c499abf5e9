"""Raw sources to data folders: each script on its real schema, what is dropped and why, and what stays as it was."""

import bz2
import csv
import gzip
import json
import runpy
import sys
import tracemalloc

import pytest
from conftest import REPOSITORY
from fake_hub import FakeHub
from tiny import rows

from lit_llm.data.curate import Similar, signature
from lit_llm.data.file_readers import csv_rows, json_rows, text_rows


@pytest.fixture
def prepare(monkeypatch, capsys, tmp_path):
    """Run a prepare script in this process; returns its exit code, its output and the folder."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, "--destination_path", "out", *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(REPOSITORY / f"scripts/prepare_{name}.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        told = capsys.readouterr()
        return code, told.out + told.err, tmp_path / "out"

    return run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def kept(folder):
    return lines(folder / "train.jsonl") + lines(folder / "val.jsonl")


def meta(folder):
    return json.loads((folder / "meta.json").read_text())


def jsonl(*values):
    return "".join(json.dumps(value) + "\n" for value in values).encode()


DOLLY = jsonl(
    {"instruction": "When?", "context": "It flew in 2000.", "response": "In 2000.", "category": "closed_qa"},
    {"instruction": "Which?", "context": "", "response": "A tope.", "category": "classification"},
)
LIMA = jsonl(
    {"conversations": ["one", "two"], "source": "stackexchange"},
    {"conversations": ["a", "b", "c", "d"], "source": "multi_turn"},
    {"conversations": ["a question of the test set"], "source": "lima"},
)


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub.constants

    with FakeHub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        yield hub


def test_dolly_comes_from_the_hub(prepare, hub):
    hub.plain["/datasets/databricks/databricks-dolly-15k/resolve/main/databricks-dolly-15k.jsonl"] = DOLLY
    code, told, folder = prepare("dolly", "--val_split_fraction=0")
    assert code == 0, told
    assert kept(folder) == [
        {"instruction": "When?", "input": "It flew in 2000.", "output": "In 2000."},
        {"instruction": "Which?", "input": "", "output": "A tope."},
    ]


def test_lima_comes_from_the_hub_with_a_token(prepare, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.plain["/datasets/GAIR/lima/resolve/main/train.jsonl"] = LIMA
    code, told, folder = prepare("lima", "--val_split_fraction=0")
    assert code == 0, told
    assert [[turn["content"] for turn in record["messages"]] for record in kept(folder)] == [["one", "two"], ["a", "b"]]
    assert meta(folder)["dropped"] == {"the last turn is not the assistant's": 1}
    assert hub.requests[-1].headers["authorization"] == "Bearer hf_mine"
    code, told, folder = prepare("lima", "--val_split_fraction=0", "--include_multiturn_conversations")
    assert [turn["content"] for turn in kept(folder)[1]["messages"]] == ["a", "b", "c", "d"]
    assert [turn["role"] for turn in kept(folder)[1]["messages"]] == ["user", "assistant"] * 2


def test_alpaca_and_json_come_from_an_address(prepare, hub):
    hub.plain["/alpaca.json"] = json.dumps(rows(30), indent=1).encode()
    code, told, folder = prepare("alpaca", "--data_file", f"{hub.url}/alpaca.json")
    assert code == 0, told
    first = (folder / "train.jsonl").read_bytes()
    code, told, folder = prepare("json", "--json_path", f"{hub.url}/alpaca.json")
    assert code == 0, told
    assert (folder / "train.jsonl").read_bytes() == first
    assert len(kept(folder)) == 30


def test_a_compressed_body_does_not_fill_the_memory(hub, tmp_path, monkeypatch):
    """A server that sends gzip unasked: it is kept as it is, and no more of a line is read than the limit."""
    from lit_llm.data import file_readers
    from lit_llm.download.hub import download_url

    hub.plain["/bomb.json"] = gzip.compress(b"0" * 10_000_000)
    assert len(hub.plain["/bomb.json"]) < 20_000
    kept_as_it_is = download_url(f"{hub.url}/bomb.json", tmp_path / "bomb.json", max_bytes=20_000)
    monkeypatch.setattr(file_readers, "MAX_LENGTH", 1_000_000)
    for read in (json_rows, csv_rows):
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"bomb\.json:1: not read \(longer than"):
            next(read(kept_as_it_is))
        assert tracemalloc.get_traced_memory()[1] < 7_000_000
        tracemalloc.stop()
    hub.plain["/list.json"] = gzip.compress(b'["' + b"0" * 10_000_000)
    with pytest.raises(ValueError, match=r"list\.json:1:2: not read \(longer than"):
        next(json_rows(download_url(f"{hub.url}/list.json", tmp_path / "list.json")))


@pytest.mark.parametrize(
    ("path", "script", "n"),
    [
        ("alpaca_small/alpaca_small.json", "alpaca", 2000),
        ("rasbt_instruction_1100/instruction-data.json", "json", 1100),
        ("gsm8k/test.jsonl", "json", 1319),
        ("preference_demo/dpo_en_demo.json", "json", 300),
    ],
)
def test_real_files_are_read_to_the_last_row(prepare, shared_data, path, script, n):
    flag = "--data_file" if script == "alpaca" else "--json_path"
    columns = ["--instruction_column=question", "--output_column=answer"] if "gsm8k" in path else []
    code, told, folder = prepare(script, flag, shared_data / path, *columns)
    assert code == 0, told
    assert len(kept(folder)) + sum(meta(folder)["dropped"].values()) == n
    assert len(kept(folder)) > 0.95 * n, meta(folder)["dropped"]


def test_preference_pairs_in_sharegpt_form(prepare, shared_data):
    source = json.loads((shared_data / "preference_demo" / "dpo_en_demo.json").read_text())
    _, _, folder = prepare("json", "--json_path", shared_data / "preference_demo/dpo_en_demo.json", "--val_split_fraction=0")
    first = kept(folder)[0]
    assert first["chosen"] == source[0]["chosen"]["value"]
    assert first["rejected"] == source[0]["rejected"]["value"]
    assert first["prompt"] == source[0]["conversations"][0]["value"]


def test_text_is_cut_without_loss_and_ends_once(prepare, shared_data, tmp_path):
    path = shared_data / "tinyshakespeare" / "input.txt"
    code, told, _ = prepare("text", "--text_path", path, "--val_split_fraction=0")
    assert code == 0, told
    records = list(text_rows(path, None, 2000))
    assert "".join(record["text"] for record in records) == path.read_text()
    assert all(len(record["text"]) <= 2000 for record in records)
    assert [record.get("continues", False) for record in records] == [True] * (len(records) - 1) + [False]
    (tmp_path / "two.txt").write_text("one<|end|>two and more")
    assert list(text_rows(tmp_path / "two.txt", "<|end|>", 2000)) == [{"text": "one"}, {"text": "two and more"}]


CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SYSTEM = {"role": "system", "content": "s"}
SHAPES = {
    "messages": ({"messages": CHAT}, {"messages": CHAT}),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s", "id": 3},
        {"messages": [{"role": "system", "content": "s"}, *CHAT]},
    ),
    "pair": ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "c"}),
    "pair of conversations": (
        {"prompt": CHAT[:1], "chosen": CHAT, "rejected": [*CHAT[:1], {"role": "assistant", "content": "c"}]},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ),
    "pair with input and system": (
        {"instruction": "a", "input": "i", "system": "s", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "input": "i", "system": "s", "chosen": "b", "rejected": "c"},
    ),
    "pair of conversations alone": (
        {"chosen": [SYSTEM, *CHAT], "rejected": [SYSTEM, CHAT[0], {"role": "assistant", "content": "c"}], "system": "s"},
        {"prompt": "a", "system": "s", "chosen": "b", "rejected": "c"},
    ),
    "pair of several turns": (
        {"prompt": [*CHAT, CHAT[0]], "system": "s", "chosen": [*CHAT, *CHAT], "rejected": {"from": "gpt", "value": "c"}},
        {"prompt": [SYSTEM, *CHAT, CHAT[0]], "chosen": "b", "rejected": "c"},
    ),
    "history": (
        {"instruction": "x", "input": "i", "output": "y", "system": "s", "history": [["a", "b"]]},
        {"messages": [SYSTEM, *CHAT, {"role": "user", "content": "x\n\ni"}, {"role": "assistant", "content": "y"}]},
    ),
    "no history": ({"instruction": "a", "output": "b", "history": []}, {"instruction": "a", "output": "b", "input": ""}),
    "pair with history": (
        {"instruction": "x", "input": "i", "chosen": "y", "rejected": "z", "history": [["a", "b"]]},
        {"prompt": [*CHAT, {"role": "user", "content": "x\n\ni"}], "chosen": "y", "rejected": "z"},
    ),
    "weight 1": ({"messages": [CHAT[0], {**CHAT[1], "weight": 1, "tool_calls": None}]}, {"messages": CHAT}),
    "weights": (
        {"messages": [{**CHAT[0], "weight": 0}, {**CHAT[1], "weight": 0}, *CHAT]},
        {"messages": [CHAT[0], {**CHAT[1], "weight": 0}, *CHAT]},
    ),
    "text": ({"text": "a"}, {"text": "a"}),
    "null input": ({"instruction": "a", "input": None, "output": "b"}, {"instruction": "a", "output": "b", "input": ""}),
    "system": (
        {"instruction": "a", "system": "s", "output": "b"},
        {"instruction": "a", "system": "s", "output": "b", "input": ""},
    ),
}


@pytest.mark.parametrize("form", ["json", "jsonl"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_rows(prepare, tmp_path, shape, form):
    row, record = SHAPES[shape]
    path = tmp_path / f"rows.{form}"
    path.write_text(json.dumps([row]) if form == "json" else json.dumps(row) + "\n")
    code, told, folder = prepare("json", "--json_path", path, "--val_split_fraction=0")
    assert code == 0, told
    assert kept(folder) == [record]


ANOTHER = {"role": "user", "content": "x"}
BAD_PAIRS = {
    "answer to a later question": (
        {"prompt": "a", "chosen": [*CHAT, ANOTHER, CHAT[1]], "rejected": "c"},
        "'prompt' and 'chosen' hold different conversations",
    ),
    "answers to two questions": (
        {"chosen": CHAT, "rejected": [ANOTHER, CHAT[1]]},
        "'chosen' and 'rejected' hold different conversations",
    ),
    "two prompts": (
        {"prompt": "a", "instruction": "x", "chosen": "b", "rejected": "c"},
        "'prompt' and 'instruction' hold different conversations",
    ),
    "input beside turns": (
        {"prompt": CHAT[:1], "input": "i", "chosen": "b", "rejected": "c"},
        "'input' or 'history' is ignored",
    ),
    "question as answer": ({"chosen": [*CHAT, ANOTHER], "rejected": CHAT}, "the last turn of 'chosen' is not the assistant's"),
    "answer as prompt": ({"prompt": CHAT[1:], "chosen": "b", "rejected": "c"}, "a role is out of order"),
    "no prompt": ({"chosen": "b", "rejected": "c"}, "the pair has no 'prompt'"),
}


@pytest.mark.parametrize("kind", BAD_PAIRS)
def test_a_pair_of_which_the_prompt_is_not_clear_is_dropped(prepare, tmp_path, kind):
    bad, reason = BAD_PAIRS[kind]
    (tmp_path / "rows.jsonl").write_bytes(jsonl({"prompt": "a", "chosen": "b", "rejected": "c"}, bad))
    code, told, folder = prepare("json", "--json_path", "rows.jsonl", "--val_split_fraction=0")
    assert code == 0, told
    assert len(kept(folder)) == 1
    ((counted, n),) = meta(folder)["dropped"].items()
    assert counted.startswith(reason)
    assert n == 1


def test_renamed_columns_work_for_pairs_and_conversations(prepare, tmp_path):
    pair = {"question": "a", "context": "i", "role": "s", "chosen": "b", "rejected": "c"}
    flags = ["--instruction_column=question", "--input_column=context", "--system_column=role", "--val_split_fraction=0"]
    (tmp_path / "rows.jsonl").write_bytes(jsonl(pair))
    _, _, folder = prepare("json", "--json_path", "rows.jsonl", *flags)
    assert kept(folder) == [{"prompt": "a", "input": "i", "system": "s", "chosen": "b", "rejected": "c"}]
    (tmp_path / "rows.jsonl").write_bytes(jsonl({"messages": CHAT, "role": "s"}))
    _, _, folder = prepare("json", "--json_path", "rows.jsonl", *flags)
    assert kept(folder) == [{"messages": [SYSTEM, *CHAT]}]


def test_one_column_cannot_be_two_things(prepare, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(jsonl({"input": "a", "output": "b"}))
    code, told, _ = prepare("json", "--json_path", "rows.jsonl", "--instruction_column=input")
    assert code == 2
    assert "the column 'input' has two roles" in told


def test_parquet_is_read_or_pyarrow_is_asked_for(prepare, tmp_path):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        (tmp_path / "a.parquet").write_bytes(b"PAR1")
        code, told, _ = prepare("json", "--json_path", "a.parquet")
        assert code == 2
        assert "pip install pyarrow" in told
        return
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": CHAT}]), tmp_path / "a.parquet")
    assert prepare("json", "--json_path", "a.parquet", "--val_split_fraction=0")[0] == 0


GOOD = {"instruction": "good", "output": "fine"}
BAD_ROWS = {
    "missing field": ({"instruction": "a"}, "the record has no 'output'"),
    "null field": ({"instruction": "a", "output": None}, "'output' must be a string"),
    "number": ({"instruction": 3, "output": "b"}, "'instruction' must be a string"),
    "number as input": ({"instruction": "a", "input": 3, "output": "b"}, "'input' must be a string"),
    "empty answer": ({"instruction": "a", "output": " \n"}, "'output' is empty"),
    "no object": (["a"], "a row must be a JSON object"),
    "duplicate": (GOOD, "duplicate"),
    "mixed kinds": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference pairs and other rows do not mix"),
    "no question": ({"output": "a", "text": "b"}, "the record has no 'instruction'"),
    "rejected missing": ({"prompt": "a", "chosen": "b"}, "the record has no 'rejected'"),
    "another system text": ({"system": "t", "messages": [SYSTEM, *CHAT]}, "the row has a system prompt, but its turns begin"),
    "weight 0": ({"messages": [CHAT[0], {**CHAT[1], "weight": 0}]}, "every answer has weight 0"),
    "rejected answer of weight 0": (
        {"prompt": "a", "chosen": "b", "rejected": [CHAT[0], {**CHAT[1], "weight": 0}]},
        "the answer of 'rejected' has weight 0",
    ),
    "weight 2": ({"messages": [CHAT[0], {**CHAT[1], "weight": 2}]}, "a turn has weight 2. Use 0 or 1"),
    "tool call": ({"messages": [CHAT[0], {**CHAT[1], "tool_calls": [{"id": "1"}]}]}, "a call of a tool has no function name"),
    "broken history": ({"instruction": "a", "output": "b", "history": ["c", "d"]}, "'history' must be a list of questions"),
    "role that is a list": ({"messages": [{**CHAT[0], "role": ["user"]}, CHAT[1]]}, "a turn must have a 'role'"),
    "role out of order": ({"messages": [CHAT[1], CHAT[0]]}, "a role is out of order"),
    "unknown role": ({"messages": [{"role": "tool", "content": "x"}]}, "a result of a tool has no call"),
    "unanswered": ({"messages": CHAT[:1]}, "the last turn is not the assistant's"),
    "empty turn": ({"messages": [CHAT[0], {"role": "assistant", "content": ""}]}, "a turn of the assistant is empty"),
    "turn without role": ({"messages": [{"content": "x"}]}, "a turn must have a 'role'"),
    "turns that are no list": ({"messages": "x"}, "'messages' must be a list"),
    "half a character": ({"instruction": "a", "output": "\ud800"}, "unpaired surrogate"),
    "10 MB": ({"instruction": "a", "output": "b" * 10_000_000}, "longer than max_chars=100000"),
}


@pytest.mark.parametrize("form", ["json", "jsonl"])
@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_dropped_counted_and_kept_for_a_look(prepare, tmp_path, kind, form):
    bad, reason = BAD_ROWS[kind]
    path = tmp_path / f"rows.{form}"
    found = [GOOD, bad, {"instruction": "more", "output": "well", "id": 1}, {"instruction": "same id", "output": "x", "id": 1}]
    path.write_bytes(json.dumps(found).encode() if form == "json" else jsonl(*found))
    code, told, folder = prepare("json", "--json_path", path, "--val_split_fraction=0", "--max_chars=100000", "--write_dropped")
    assert code == 0, told
    assert [record["instruction"] for record in kept(folder)] == ["good", "more", "same id"]
    ((counted, n),) = meta(folder)["dropped"].items()
    assert counted.startswith(reason)
    assert n == 1
    assert "dropped 1: " + counted in told
    assert [dropped["row"] for dropped in lines(folder / "dropped.jsonl")] == [bad]


BAD_FILES = {
    "broken line": ("json", b'{"instruction": "a", "output": "b"}\n\n{"instruction": \n', ":3:16: not JSON"),
    "broken item": ("json", b'[\n {"instruction": "a", "output": "b"},\n {"instruction": }\n]', ":3:18: not JSON"),
    "no comma": ("json", b'[{"instruction": "a", "output": "b"}\n {"a": 1}]', ":2:2: not JSON (expecting ',' delimiter)"),
    "unclosed list": ("json", b'[{"instruction": "a", "output": "b"}', "not JSON (the list does not end)"),
    "two lists": ("json", b'[{"instruction": "a", "output": "b"}]\n[{"a": 1}]', ":2:1: not JSON (extra data behind the list)"),
    "list behind an empty one": ("json", b'[] [{"a": 1}]', ":1:4: not JSON (extra data behind the list)"),
    "closed after a comma": ("json", b'[{"instruction": "a", "output": "b"},]', ":1:38: not JSON (Expecting value)"),
    "deep line": ("json", b'{"a": 1}\n{"a": ' + b"[" * 5000, ":2: not read (nested too deeply)"),
    "deep item": ("json", b'[{"a": 1},\n {"a": ' + b"[" * 5000, ":2:2: not read (nested too deeply)"),
    "long number in a line": ("json", b'{"a": 1}\n{"a": ' + b"1" * 5000 + b"}", ":2: not read (Exceeds the limit"),
    "long number in an item": ("json", b'[{"a": 1},\n {"a": ' + b"1" * 5000 + b"}]", ":2:2: not read (Exceeds the limit"),
    "not UTF-8": ("json", b'{"instruction": "\xff"}\n', ":1: not UTF-8"),
    "not UTF-8 in a list": ("json", b'[{"instruction": "\xff"}]\n', "is not UTF-8"),
    "bzip2": ("json", bz2.compress(b"[]"), "is compressed (bzip2)"),
    "cut off gzip": ("json", gzip.compress(jsonl(*({"a": i} for i in range(9999))))[:-9], "is damaged (Compressed file ended"),
    "changed gzip": ("json", gzip.compress(jsonl({"a": 1}))[:-5] + b"12345", "is damaged (CRC check failed"),
    "gzip of nothing": ("csv", gzip.compress(b""), "the columns of a header are missing"),
    "zip": ("csv", b"PK\x03\x04 and so on", "is compressed (zip)"),
    "empty": ("json", b"", "it has no rows"),
    "empty list": ("json", b" [ ] ", "it has no rows"),
    "wrong delimiter": ("csv", b"instruction:output\na:b\n", "Is the delimiter a comma, semicolon, tab or vertical bar?"),
    "column twice": ("csv", b"output;instruction;output\na;b;c\n", "two columns with the same name: 'output'"),
    "identical pairs": (
        "json",
        jsonl(*({"prompt": f"q{i}", "chosen": "a", "rejected": "a"} for i in range(3))),
        "nothing to train on is left: 'chosen' and 'rejected' are the same (3)",
    ),
    "open quote": ("csv", b'instruction,output\n"a,b\n', ":2: not CSV"),
    "wrong quote": ("csv", b'instruction,output\na,b\n"c\nd"e,f\n', ":3: not CSV"),
    "open quote in the header": ("csv", b'"instruction,output\n' + b"a,b\n" * 50_000, ":1: not CSV"),
    "missing": ("csv", None, "does not exist"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_cannot_be_read_is_told_with_the_place(prepare, tmp_path, kind):
    form, content, message = BAD_FILES[kind]
    path = tmp_path / f"rows.{form}"
    if content is not None:
        path.write_bytes(content)
    code, told, folder = prepare(form, f"--{form}_path", path)
    assert code == 2
    assert message in told
    assert not folder.exists()


def test_csv_with_bom_other_columns_and_a_long_cell(prepare, tmp_path):
    with (tmp_path / "a.csv").open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerows([["Frage", "Antwort"], ["a,\nb", "c" * 200_000], ["d", "e", "too much"], ["f"]])
    flags = ["--instruction_column=Frage", "--output_column=Antwort", "--val_split_fraction=0"]
    code, told, folder = prepare("csv", "--csv_path", "a.csv", *flags)
    assert code == 0, told
    assert kept(folder) == [{"instruction": "a,\nb", "output": "c" * 200_000, "input": ""}]
    assert sorted(meta(folder)["dropped"]) == ["'output' must be a string", "the row has more cells than there are columns"]


def test_a_history_column_is_read_as_json_or_ignored(prepare, tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        histories = ["", "[]", "modern", json.dumps([["q", "r"]]), "[['q', 'r']]"]
        table = csv.writer(file)
        table.writerow(["instruction", "output", "history"])
        table.writerows([f"a{i}", "b", history] for i, history in enumerate(histories))
    code, told, folder = prepare("csv", "--csv_path", "a.csv", "--val_split_fraction=0")
    assert code == 0, told
    *plain, turns = kept(folder)
    assert plain == [{"instruction": f"a{i}", "output": "b", "input": ""} for i in range(3)]
    assert [turn["content"] for turn in turns["messages"]] == ["q", "r", "a3", "b"]
    assert meta(folder)["dropped"] == {"'history' must be a list of questions, each with its answer": 1}


def test_a_file_and_the_folder_that_it_runs_in_are_not_replaced(prepare, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(jsonl(*rows(5)))
    (tmp_path / "notes.txt").write_text("precious")
    code, told, _ = prepare("json", "--json_path", "rows.jsonl", "--destination_path", "notes.txt")
    assert code == 2
    assert "--destination_path notes.txt is a file" in told
    assert (tmp_path / "notes.txt").read_text() == "precious"
    code, told, _ = prepare("json", "--json_path", "rows.jsonl", "--destination_path", ".")
    assert code == 2
    assert "is the current folder" in told


def test_a_csv_as_pandas_writes_it_has_a_column_without_a_name(prepare, tmp_path):
    (tmp_path / "a.csv").write_text(",instruction,output\n0,a,b\n1,c,d,e\n")
    code, told, folder = prepare("csv", "--csv_path", "a.csv", "--val_split_fraction=0")
    assert code == 0, told
    assert kept(folder) == [{"instruction": "a", "output": "b", "input": ""}]
    assert meta(folder)["dropped"] == {"the row has more cells than there are columns": 1}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "n_questions"), [(1, 1), (50, 1), (2, 2)])
def test_validation_never_takes_all_rows(prepare, tmp_path, n, n_questions, seed):
    found = [{"instruction": f"q{i % n_questions}", "output": f"a{i}"} for i in range(n)]
    (tmp_path / "rows.jsonl").write_bytes(jsonl(*found))
    code, told, folder = prepare("json", "--json_path", "rows.jsonl", "--val_split_fraction=0.9", f"--seed={seed}")
    assert code == 0, told
    assert len(lines(folder / "train.jsonl")) >= 1
    assert len(kept(folder)) == n
    assert meta(folder)["rows"] == {"train": len(lines(folder / "train.jsonl")), "val": len(lines(folder / "val.jsonl"))}


def test_identical_pairs_are_dropped_and_ignored_fields_counted(prepare, tmp_path):
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "score": 0.0}
    (tmp_path / "rows.jsonl").write_bytes(jsonl(pair, {**pair, "rejected": "a"}, {**pair, "prompt": "r", "id": 1}))
    code, told, folder = prepare("json", "--json_path", "rows.jsonl", "--val_split_fraction=0")
    assert code == 0, told
    assert len(kept(folder)) == 2
    assert meta(folder)["dropped"] == {"'chosen' and 'rejected' are the same": 1}
    assert meta(folder)["ignored"] == {"score": 3, "id": 1}
    assert "ignored fields: 'score' (3 rows), 'id' (1 rows)" in told


@pytest.mark.parametrize("name", ["ROWS.CSV", "rows.txt", "rows"])
def test_prepare_csv_reads_csv_whatever_its_name(prepare, tmp_path, name):
    (tmp_path / name).write_text("Instruction;Output\na;b\n")
    code, told, folder = prepare("csv", "--csv_path", name, "--val_split_fraction=0")
    assert code == 0, told
    assert kept(folder) == [{"instruction": "a", "output": "b", "input": ""}]


def test_splits_are_stable_and_share_no_question(prepare, tmp_path):
    found = [{"instruction": f"q{i % 150}", "output": f"a{i}"} for i in range(300)]
    (tmp_path / "rows.jsonl").write_bytes(jsonl(*found[:200]))
    _, _, folder = prepare("json", "--json_path", "rows.jsonl", "--val_split_fraction=0.3")
    before = lines(folder / "val.jsonl")
    (tmp_path / "rows.jsonl").write_bytes(jsonl(*found))
    _, _, folder = prepare("json", "--json_path", "rows.jsonl", "--val_split_fraction=0.3")
    train, val = lines(folder / "train.jsonl"), lines(folder / "val.jsonl")
    assert [record for record in val if record in before] == before
    assert len(val) > len(before) > 30
    assert not {r["instruction"] for r in train} & {r["instruction"] for r in val}


def test_token_cache_hits_only_for_equal_options_and_files(prepare, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(jsonl(*rows(40)))
    flags = ["json", "--json_path", "rows.jsonl"]
    assert "up to date" not in prepare(*flags)[1]
    assert "up to date" in prepare(*flags)[1]
    assert "up to date" not in prepare(*flags, "--seed=1")[1]
    (tmp_path / "out" / "train.jsonl").unlink()
    assert "a file was missing" in prepare(*flags, "--seed=1")[1]
    assert len(kept(tmp_path / "out")) == 40
    assert "made from another file (rows.jsonl) or with other options" in prepare(*flags)[1]
    (tmp_path / "rows.jsonl").write_bytes(jsonl(*rows(41)))
    assert "up to date" not in prepare(*flags, "--seed=1")[1]


def change(folder, name):
    with (folder / name).open("a") as file:
        file.write(json.dumps(GOOD) + "\n")


@pytest.mark.parametrize("options", [[], ["--seed=1"]])
@pytest.mark.parametrize("name", ["train.jsonl", "val.jsonl", "notes.md", ".gitignore"])
def test_what_was_changed_by_hand_is_not_replaced(prepare, tmp_path, name, options):
    (tmp_path / "rows.jsonl").write_bytes(jsonl(*rows(5)))
    flags = ["json", "--json_path", "rows.jsonl", "--val_split_fraction=0"]
    _, _, folder = prepare(*flags)
    change(folder, name)
    before = (folder / name).read_bytes()
    code, told, _ = prepare(*flags, *options)
    assert (folder / name).read_bytes() == before
    if name != "train.jsonl" and not options:  # nothing is to be written
        assert "up to date" in told
    else:
        assert code == 2
        assert f"written or changed by hand, and would be lost: {name}." in told


def test_caches_of_tokens_are_replaced(prepare, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(jsonl(*rows(5)))
    _, _, folder = prepare("json", "--json_path", "rows.jsonl")
    change(folder, "train-tokens-0123456789abcdef.safetensors")
    (folder / ".new-train-tokens-0123456789abcdef.safetensors-x1_y2345").mkdir()
    (folder / ".DS_Store").touch()
    code, told, _ = prepare("json", "--json_path", "rows.jsonl", "--seed=1")
    assert code == 0, told
    assert len(kept(folder)) == 5


def test_limits(prepare, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(jsonl(*({"instruction": f"q{i}", "output": "x" * i} for i in range(1, 21))))
    limits = ["--min_answer_chars=5", "--max_chars=17", "--max_examples=6", "--val_split_fraction=0"]
    _, told, folder = prepare("json", "--json_path", "rows.jsonl", *limits)
    assert [len(record["output"]) for record in kept(folder)] == [5, 6, 7, 8, 9, 10]
    assert sorted(meta(folder)["dropped"].values()) == [3, 4, 7], told


def test_similarity_is_that_of_the_shingles():
    """Against the exact Jaccard similarity of the sets: pairs well above the threshold are found, those well below are not."""
    words = [f"w{i}" for i in range(300)]
    found = {}
    for n_changed in range(0, 120, 10):
        similar = Similar(0.7)
        changed = words[:]
        for i in range(n_changed):
            changed[i] = f"x{i}"  # each at the front: a run of n changes n shingles
        sets = [{" ".join(text[i : i + 3]) for i in range(298)} for text in (words, changed)]
        assert not similar.seen(signature(" ".join(words)).tobytes())
        found[len(sets[0] & sets[1]) / len(sets[0] | sets[1])] = similar.seen(signature(" ".join(changed)).tobytes())
    assert all(near for jaccard, near in found.items() if jaccard > 0.8)
    assert not any(near for jaccard, near in found.items() if jaccard < 0.6)
    assert not similar.seen(signature("").tobytes())


def test_near_duplicates_are_dropped_if_asked(prepare, tmp_path):
    text = "the red cat sees a small dog in the big house of the river and likes it very much"
    found = [{"instruction": "tell", "output": text}, {"instruction": "tell", "output": text + "!"}, GOOD]
    (tmp_path / "rows.jsonl").write_bytes(jsonl(*found))
    _, _, folder = prepare("json", "--json_path", "rows.jsonl", "--val_split_fraction=0", "--near_duplicates=0.8")
    assert kept(folder) == [{**found[0], "input": ""}, {**GOOD, "input": ""}]
    assert meta(folder)["dropped"] == {"near duplicate": 1}


def test_a_list_is_read_row_by_row(tmp_path):
    """100 MB of rows would be 100 MB of objects and more; a row is a few kB."""
    with (tmp_path / "rows.json").open("w") as file:
        file.write("[" + ",\n".join(json.dumps({"i": i, "text": 'é"]' * 1000}) for i in range(3000)) + "]")
    tracemalloc.start()
    assert [row["i"] for row in json_rows(tmp_path / "rows.json")] == list(range(3000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000 < (tmp_path / "rows.json").stat().st_size
