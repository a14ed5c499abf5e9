"""The embedded demo: the village, its tokenizer, what is committed, and a tiny run of the script that makes it."""

import importlib.util
import random
import re
import sys

import pytest
import torch
from conftest import REPOSITORY

from lit_llm import Tokenizer, load
from lit_llm.cli import DEMO
from lit_llm.data.rows import read_records
from lit_llm.generation.generate import generate
from lit_llm.text.conversation import prompt_style, question


def alpaca(instruction: str, input: str) -> str:
    return prompt_style("alpaca").render(question(instruction, input), True, {})


@pytest.fixture(scope="module")
def make_demo():
    spec = importlib.util.spec_from_file_location("make_demo", REPOSITORY / "scripts" / "make_demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_demo"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_demo"]


@pytest.fixture(scope="module")
def world(make_demo):
    return make_demo.World(1337)


@pytest.fixture(scope="module")
def texts(world):
    rng = random.Random(0)
    return [world.text(rng) for _ in range(20_000)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(DEMO / "checkpoint")


def test_the_seed_decides_the_world(make_demo, world):
    again, other = make_demo.World(1337), make_demo.World(7)
    assert again.facts() == world.facts() != other.facts()
    assert again.text(random.Random(3)) == world.text(random.Random(3))
    assert again.rows(5, held_out=True) == world.rows(5, held_out=True) != world.rows(6, held_out=True)


@pytest.mark.parametrize("seed", [1337, 0, 7])
def test_no_held_out_prompt_or_answer_is_trained_on(make_demo, seed):
    world = make_demo.World(seed)
    train = world.rows(seed, held_out=False, per_fact=2)
    held_out = world.rows(seed, held_out=True) + world.rows(seed, held_out=True, per_fact=2, unseen=True)
    assert not {(r["instruction"], r["input"]) for r in train} & {(r["instruction"], r["input"]) for r in held_out}
    assert not {r["output"] for r in train} & {r["output"] for r in held_out}
    names = {fact.fields["n"] for fact in world.facts() if fact.held_out and "n" in fact.fields}
    assert names and not names & {word for r in train for word in re.findall(r"\w+", r["instruction"] + " " + r["output"])}


def test_one_question_has_one_answer(world):
    answers: dict[str, str] = {}
    for fact in world.facts():
        for asked in fact.kind.asked:
            assert answers.setdefault(asked.format(**fact.fields), fact.answer) == fact.answer


def test_unseen_phrasings_are_not_among_the_rows(world):
    fact = next(fact for fact in world.facts() if not fact.held_out)
    assert not set(fact.asks(unseen=True)) & set(fact.asks(unseen=False))
    assert len(fact.asks(unseen=True)) + len(fact.asks(unseen=False)) == len(fact.kind.asked) + 2 * len(fact.kind.tasks)


def test_pretraining_text_tells_every_held_out_fact(world, texts):
    whole = "\n".join(texts)
    assert all(fact.answer in whole for fact in world.facts() if fact.held_out)


def test_pretraining_text_has_no_instructions_or_bare_answers(world, texts):
    whole = "\n".join(texts)
    assert not any(word in whole for word in ("###", "Instruction", "Response", "Below is"))
    lines = {line for text in texts for line in text.split("\n")}
    assert not lines & {fact.answer for fact in world.facts()}
    assert not lines & {ask for fact in world.facts() for ask, _ in fact.asks(unseen=False) + fact.asks(unseen=True)}


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "\n", "\n\n a  b \n", "“", "“ “a”", "“Who is Ada?” asked Edith: “I am.”", "a\r\n\tb",
        "naïve café, 東京, \U0001f994\U0001f3fd, \x00\x7f", "<0x41> and <0xE2>", "def f(x):\n    return x  # 1,5 + 2\n",
        "Dear Edith,\nhappy birthday!\nYour friend Ada", alpaca("Give the opposite of this word.", "hot") + "Cold.",
    ],
)  # fmt: skip
def test_tokenizer_gives_every_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_has_one_token_per_name_wherever_it_stands(tokenizer, world):
    for name in world.names:
        (token,) = tokenizer.encode(name, bos=False)
        for before in ("Dear ", "Dear\n", "“", "\n\n"):
            assert tokenizer.encode(f"{before}{name}.", bos=False)[-2] == token


def test_prompt_and_answer_encoded_apart_are_the_whole(tokenizer):
    for record in read_records(DEMO / "data" / "val.jsonl"):
        prompt = alpaca(record["instruction"], record["input"])
        apart = tokenizer.encode(prompt) + tokenizer.encode(record["output"], bos=False)
        assert apart == tokenizer.encode(prompt + record["output"])


def test_tokenizer_settings(tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids, tokenizer.adds_bos) == (0, 1, {1}, True)
    assert tokenizer.encode("a")[0] == 0 and 0 not in tokenizer.encode("a", bos=False)


def test_tiny_run_makes_a_folder_that_loads(script, tmp_path):
    script("scripts/make_demo.py", "--output_dir", "demo", "--steps", "3", "--seed", "7")
    model, tokenizer = load(tmp_path / "demo" / "checkpoint")
    logits = model(torch.tensor([tokenizer.encode("Where does Edith live?")]))
    assert logits.shape[-1] == tokenizer.vocab_size == model.config.vocab_size
    assert logits.isfinite().all()
    for split in ("train", "val"):
        records = read_records(tmp_path / "demo" / "data" / f"{split}.jsonl")
        assert records[0].keys() == {"instruction", "input", "output"}
        assert records != read_records(DEMO / "data" / f"{split}.jsonl")  # another seed, another village


def test_steps_must_be_positive(script):
    done = script("scripts/make_demo.py", "--steps", "0", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --steps")


def test_committed_data_is_what_the_script_writes(make_demo, tmp_path):
    make_demo.make_data(make_demo.World(1337), tmp_path / "data", 1337)
    for name in ("train.jsonl", "val.jsonl", "meta.json"):
        assert (tmp_path / "data" / name).read_text() == (DEMO / "data" / name).read_text()


def test_committed_base_is_small_and_cannot_answer():
    assert sum(path.stat().st_size for path in (DEMO / "checkpoint").iterdir()) < 8_000_000
    model, tokenizer = load(DEMO / "checkpoint")
    records = read_records(DEMO / "data" / "val.jsonl")[:50]
    prompts = [alpaca(record["instruction"], record["input"]) for record in records]
    answers = generate(model, tokenizer, prompts, max_new_tokens=48, temperature=0)
    ends = sum(answer.ended and answer.text == record["output"] for answer, record in zip(answers, records, strict=True))
    first_line = sum(answer.text.split("\n")[0] == record["output"] for answer, record in zip(answers, records, strict=True))
    assert ends < 5 and first_line < 5
