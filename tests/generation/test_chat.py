"""The chat in the terminal: over pipes, and over a pseudo-terminal with the keys that stop and leave."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest
import torch
from conftest import REPOSITORY
from tiny import make_checkpoint, make_endless_checkpoint, make_tokenizer
from tokenizers import Tokenizer as HFTokenizer

import lit_llm
from lit_llm.args.serve import ChatArgs
from lit_llm.checkpoint.adapters import write_adapter
from lit_llm.cli import DEMO
from lit_llm.data.examples import tokenize
from lit_llm.data.rows import read_records
from lit_llm.generation import chat as chat_module
from lit_llm.generation.chat import Conversation, chat
from lit_llm.generation.decode import Row
from lit_llm.generation.generate import generate
from lit_llm.methods.lora import LoRA
from lit_llm.text.conversation import prompt_ids
from lit_llm.text.ending import ending


@pytest.fixture(scope="module")
def demo():
    return lit_llm.load(DEMO / "checkpoint", device="cpu")


def answer(demo, turns, n, style="alpaca", **options):
    (found,) = generate(*demo, [prompt_ids(style, demo[1], turns)], max_new_tokens=n, **{"temperature": 0, **options})
    return found.text.strip()


def say(conversation, text):
    return "".join(conversation.answer(text))


def typed(monkeypatch, *lines):
    """Let `input` give these lines and then the end."""
    left = [*lines]

    def read(prompt=""):
        if not left:
            raise EOFError
        return left.pop(0)

    monkeypatch.setattr("builtins.input", read)


def test_an_answer_knows_what_was_said_before(demo):
    conversation = Conversation(*demo, "alpaca", ChatArgs(temperature=0, max_new_tokens=10, system="Be kind."))
    first = say(conversation, "Where does Frida live?").strip()
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where does Frida live?"}]
    assert first == answer(demo, turns, 10)
    turns += [{"role": "assistant", "content": first}, {"role": "user", "content": "And Igor?"}]
    assert say(conversation, "And Igor?").strip() == answer(demo, turns, 10)


def test_a_full_context_forgets_the_oldest_exchange_and_says_so(demo, capsys):
    conversation = Conversation(*demo, "plain", ChatArgs(temperature=0, max_new_tokens=40))
    for i in range(12):
        say(conversation, f"Question {i}: " + "where does the goose live? " * 2)
    told = capsys.readouterr().err
    assert "the context of 256 tokens is full: the oldest 1 exchanges are forgotten" in told
    assert conversation.turns[0]["role"] == "user"
    assert conversation.turns[0]["content"] != "Question 0: " + "where does the goose live? " * 2
    kept = list(conversation.turns)
    with pytest.raises(ValueError, match="the context 256"):
        say(conversation, "the red cat " * 300)
    assert conversation.turns == kept


FALCON = (
    "{% for m in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}{{ 'User: ' if m.role == 'user' else 'Falcon: ' }}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ '\nFalcon:' }}{% endif %}"
)  # closes no turn


def test_history_is_as_published_or_as_trained(tmp_path, monkeypatch):
    """A checkpoint that nobody finetuned gets what transformers renders. Its finetuning has put EOS behind every answer."""
    from transformers import AutoTokenizer

    folder = make_checkpoint(tmp_path / "m")
    (folder / "chat_template.jinja").write_text(FALCON)
    asked = []

    class Recorded(Row):
        def __init__(self, tokenizer, prompt, *arguments):
            asked.append(list(prompt))
            super().__init__(tokenizer, prompt, *arguments)

    monkeypatch.setattr(chat_module, "Row", Recorded)
    questions = ["the red cat", "and a dog", "a bird"]

    def talk():
        """Return the conversation before each answer, and ask for it."""
        asked.clear()
        save = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        typed(monkeypatch, *questions, f"/save {save}")
        chat(ChatArgs(checkpoint_dir=folder, temperature=0, max_new_tokens=5))
        (record,) = read_records(save)
        return [record["messages"][: 2 * i + 1] for i in range(3)]

    reference, tokenizer, chats = AutoTokenizer.from_pretrained(folder), lit_llm.Tokenizer(folder), talk()
    for ids, turns in zip(asked, chats, strict=True):
        expected = reference.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert ids == [tokenizer.bos_id, *expected]
    (folder / "finetuned.json").write_text(json.dumps({"prompt_style": "chat_template"}))
    for ids, turns in zip(asked, talk(), strict=True):
        document = tokenize(
            {"messages": [*turns, {"role": "assistant", "content": "it"}]}, "chat_template", tokenizer, True, "all"
        )
        assert document.documents[0].ids[: len(ids)].tolist() == ids
        assert ids.count(tokenizer.eos_id) == len(turns) // 2


def test_commands(demo, monkeypatch, capsys, tmp_path):
    save = f"/save {tmp_path / 'talk.jsonl'}"
    lines = ["/help", "Where does Frida live?", save, "/system Be kind.", "//quit is a word", save]
    typed(monkeypatch, *lines, "/reset", save, "/save", "/wrong", "", "/quit", "never said")
    chat(ChatArgs(temperature=0, max_new_tokens=8))
    out, err = capsys.readouterr()
    first, second = [r["messages"] for r in read_records(tmp_path / "talk.jsonl")]
    assert [turn["content"] for turn in first] == ["Where does Frida live?", answer(demo, first[:1], 8)]
    assert second[0] == {"role": "system", "content": "Be kind."}
    assert second[3]["content"] == "/quit is a word"
    assert out == f"{first[1]['content']}\n{second[4]['content']}\n"
    for told in (
        "/reset ",
        "the conversation is forgotten",
        "nothing was said yet",
        "needs the name of a file",
        "/wrong is not a command",
    ):
        assert told in err


def test_bad_lines_and_file_names_keep_the_conversation(tmp_path):
    save = f"/save {tmp_path}/talk.jsonl"
    lines = [b"Where does Frida live?", b"not \xff utf-8", b"/save a\0b", b"/save " + bytes(tmp_path), save.encode()]
    done = subprocess.run(
        [sys.executable, REPOSITORY / "generate/chat.py", "--temperature=0", "--max_new_tokens=8"],
        input=b"\n".join(lines),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"},
        capture_output=True,
    )
    told = done.stderr.decode()
    assert done.returncode == 0, told
    assert "the line is not UTF-8" in told
    assert "'a\\x00b' cannot be written" in told
    assert told.count("cannot be written") == 2
    (record,) = read_records(tmp_path / "talk.jsonl")
    assert record["messages"][0]["content"] == "Where does Frida live?"
    assert len(record["messages"]) == 2


def test_an_adapter_is_asked_in_the_style_of_its_training(tmp_path, monkeypatch, capsys, checkpoint):
    model, _ = lit_llm.load(checkpoint)
    method, folder = LoRA(), tmp_path / "adapter"
    method.attach(model)
    for name, parameter in model.named_parameters():
        if method.trainable(name):
            torch.nn.init.normal_(parameter, std=0.3)
    folder.mkdir()
    write_adapter(folder, model, method, checkpoint, "vicuna")
    typed(monkeypatch, "the red cat", "and a dog")
    chat(ChatArgs(adapter_dir=folder, temperature=0, max_new_tokens=6, quantize="bnb.nf4"))
    model = lit_llm.load(checkpoint, folder, device="cpu", quantize="bnb.nf4")
    turns = [{"role": "user", "content": "the red cat"}]
    turns += [{"role": "assistant", "content": answer(model, turns, 6, "vicuna")}, {"role": "user", "content": "and a dog"}]
    assert capsys.readouterr().out.splitlines() == [turns[1]["content"], answer(model, turns, 6, "vicuna")]


def test_the_token_that_closes_a_turn_ends_an_answer(tmp_path):
    """As with Qwen's base models, whose texts end with another token than their answers."""
    make_tokenizer(tmp_path)
    plain = lit_llm.Tokenizer(tmp_path)
    assert ending("chatml", plain).ids == ending("vicuna", plain).ids == plain.eos_ids
    extended = HFTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    extended.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    extended.save(str(tmp_path / "tokenizer.json"))
    tokenizer = lit_llm.Tokenizer(tmp_path)
    assert ending("chatml", tokenizer).ids == tokenizer.eos_ids | {extended.token_to_id("<|im_end|>")}
    assert ending("vicuna", tokenizer).ids == tokenizer.eos_ids


class Terminal:
    """The script on a pseudo-terminal."""

    def __init__(self, *options):
        self.end, theirs = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "TERM": "dumb"}

        def take_terminal():
            """So that its Ctrl-C is a signal, which shells let the programs that they start in the background ignore."""
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        self.process = subprocess.Popen(
            [sys.executable, REPOSITORY / "generate/chat.py", *options],
            env=environment,
            **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(theirs)
        self.seen = ""

    def type(self, text):
        os.write(self.end, text.encode())

    def wait_for(self, pattern, seconds=90):
        """Read until this was written after what was waited for before."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, self.seen
            if select.select([self.end], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.end, 4096).decode(errors="replace")
                except OSError:
                    break
        assert found, self.seen
        self.seen = self.seen[found.end() :]


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(tmp_path):
    folder = make_endless_checkpoint(tmp_path / "m")
    terminal = Terminal("--checkpoint_dir", folder, "--prompt_style", "plain", "--max_new_tokens", "30000")
    try:
        terminal.wait_for("> ")
        terminal.type("the red cat\n")
        terminal.wait_for(r"the red cat\r\n.*\w{3}")
        terminal.type("\x03")
        terminal.wait_for("stopped")
        terminal.wait_for("> ")
        time.sleep(0.5)  # between the prompt and its wait for keys, CPython's readline notices a signal with the next key only
        terminal.type("half a line\x03")
        terminal.wait_for("Ctrl-D or /quit leaves")
        terminal.wait_for("> ")
        terminal.type("/help\n")
        terminal.wait_for("Ctrl-C stops an answer")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=30) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.end)
