"""Tools, calls and results in the shapes that people publish become those of OpenAI."""

import json
import re
from collections import Counter

import pytest
from tool_templates import CHATS, CLOCK, WEATHER, call

from lit_llm.data.rows import COLUMNS, read_records, to_record

RECORD = {"messages": CHATS["two calls"], "tools": [WEATHER, CLOCK]}


def record(row, ignored=None):
    return to_record(row, COLUMNS, ignored)


def without_ids(record):
    text = json.dumps({**record, "messages": [{k: v for k, v in m.items() if k != "tool_call_id"} for m in record["messages"]]})
    found = json.loads(text)
    for message in found["messages"]:
        for each in message.get("tool_calls", ()):
            each.pop("id", None)
    return found


def hermes_call(each):
    return f"<tool_call>\n{json.dumps(each['function'])}\n</tool_call>"


USER, CALLS, FIRST, SECOND, END = RECORD["messages"]


def openai(dumps):
    calls = [{**c, "function": {**c["function"], "arguments": dumps(c["function"]["arguments"])}} for c in CALLS["tool_calls"]]
    return {
        "messages": [USER, {"role": "assistant", "content": None, "tool_calls": calls}, FIRST, SECOND, END],
        "tools": RECORD["tools"],
    }


@pytest.mark.parametrize("dumps", [json.dumps, dict])
def test_openai(dumps):
    found = record(openai(dumps))
    assert found == RECORD
    assert record(found) == found
    as_table = {name: json.dumps(value) for name, value in openai(dumps).items()}
    assert record(as_table) == RECORD


def test_the_first_form_of_openai():
    turns = [USER, {"role": "assistant", "content": None, "function_call": {"name": "now", "arguments": "{}"}},
             {"role": "function", "name": "now", "content": "12:00"}, END]  # fmt: skip
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "now", "arguments": {}}}],
    }
    assert record({"messages": turns})["messages"] == [USER, called, {"role": "tool", "name": "now", "content": "12:00"}, END]


def test_sharegpt():
    calls = [c["function"] for c in CALLS["tool_calls"]]
    turns = [("human", USER["content"]), ("function_call", json.dumps(calls)), ("observation", FIRST["content"]),
             ("observation", SECOND["content"]), ("gpt", END["content"])]  # fmt: skip
    row = {
        "conversations": [{"from": a, "value": b} for a, b in turns],
        "tools": json.dumps([t["function"] for t in RECORD["tools"]]),
    }
    assert record(row) == without_ids(RECORD)


@pytest.mark.parametrize("named", ["", " They are between <tools></tools> tags."])
@pytest.mark.parametrize("listed", [True, False])
def test_hermes(listed, named):
    tools = json.dumps(RECORD["tools"])
    turns = [
        ("system", f"You may call functions.{named} <tools> {tools} </tools> For each call return JSON."),
        ("human", USER["content"]),
        ("gpt", "\n".join(map(hermes_call, CALLS["tool_calls"]))),
        ("tool", "".join(f"<tool_response>\n{m['content']}\n</tool_response>\n" for m in (FIRST, SECOND))),
        ("gpt", END["content"]),
    ]
    ignored = Counter()
    row = {"conversations": [{"from": a, "value": b} for a, b in turns], **({"tools": tools} if listed else {})}
    assert record(row, ignored) == without_ids(RECORD)
    assert ignored == {"the system turn that lists tools": 1}


def test_text_between_tags_is_text_where_no_tools_are():
    turns = [USER, {"role": "assistant", "content": "The tag <tool_call>{}</tool_call> opens a call."}]
    assert record({"messages": turns}) == {"messages": turns}


def _changed(**changes):
    messages = json.loads(json.dumps(RECORD["messages"]))
    return {"messages": messages, "tools": RECORD["tools"], **changes}


def _with(index, **fields):
    row = _changed()
    row["messages"][index] |= fields
    return row


def _without(*indices):
    return _changed(messages=[m for i, m in enumerate(RECORD["messages"]) if i not in indices])


MISTAKES = [
    (_without(2, 3), "a role is out of order|results 0"),
    (_without(3), "the call 'call00001' has no result; results are those of 'call00000'"),
    (_without(1), "a result of a tool has no call before it"),
    (_with(3, tool_call_id="other"), "the call 'call00001' has no result"),
    (_changed(messages=[USER, CALLS, USER, END]), "calls of tools are 2, ['get_weather', 'now'], their results 0"),
    (
        _with(1, tool_calls=[{"function": {"name": "now", "arguments": "{'a': 1}"}}]),
        "arguments of the call of 'now' are not JSON",
    ),
    (_with(1, tool_calls=[{"function": {"name": "now", "arguments": "[1]"}}]), "'now' are not a JSON object, found [1]"),
    (_with(1, tool_calls=[{"function": {"arguments": {}}}]), "a call of a tool has no function name"),
    (_with(1, tool_calls="now()"), "the calls of a turn are not JSON: 'now()'"),
    (_changed(tools=[{"type": "function", "function": {"parameters": {}}}]), "a tool has no function name"),
    (_changed(tools=[{"name": "f", "parameters": "city"}]), "parameters of the tool 'f' are not a JSON schema, found 'city'"),
    (
        _changed(tools=[{"name": "f", "parameters": {"type": "objct"}}]),
        "tool 'f' have the type 'objct'. Use one of: object",
    ),
    (_changed(tools=[{"name": "f", "parameters": {"type": "object", "properties": ["city"]}}]), "are not a JSON schema"),
]


@pytest.mark.parametrize(("row", "message"), MISTAKES)
def test_a_mistake_is_named(row, message):
    with pytest.raises(ValueError, match="|".join(map(re.escape, message.split("|")))):
        record(row)


def test_a_pair_with_calls_is_refused():
    answer = [USER, {"role": "assistant", "content": "", "tool_calls": [call("now")]}]
    with pytest.raises(ValueError, match="an answer of a pair has 'tool_calls', which would be ignored"):
        record({"prompt": USER["content"], "chosen": answer, "rejected": [USER, END]})


ASKED, ANSWERED = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{"name": "f"}]}, ASKED, ANSWERED]}, "'f'.*their results 0"),
        (
            {"messages": [ASKED, ANSWERED, {"role": "tool", "content": "1"}, ANSWERED]},
            "a result of a tool has no call before it",
        ),
        (
            {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{x"}]}]},
            "the arguments of the call of 'f' are",
        ),
        (
            {"messages": [ASKED, ANSWERED], "tools": [{"name": "f", "parameters": [1]}]},
            "the parameters of the tool 'f' are not a JSON schema",
        ),
    ],
    ids=["no result", "no call", "no JSON", "no schema"],
)
def test_a_row_with_bad_calls_is_named_by_file_and_line(tmp_path, row, message):
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": [ASKED, ANSWERED]}) + "\n" + json.dumps(row))
    with pytest.raises(ValueError, match=f"train.jsonl:2: .*{message}"):
        read_records(tmp_path / "train.jsonl")
