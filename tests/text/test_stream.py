"""Streamed text against the text decoded at once, with the tokenizers of published models."""

import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lit_llm.cli import DEMO
from lit_llm.text.stream import TextStream, pieces, token_texts
from lit_llm.text.tokenizer import Tokenizer

TEXT = 'Größe: 3 € - "naïve" café 😀😀 日本語\n\n  def f(x):\n\treturn x  # 👩‍👩‍👧 ok'


LETTERS = "aé €“🍕😀👩‍👧\U0010ffff뷁안今日龘ꦥส\u0301\n"  # of one to four bytes; few of them are tokens


NAMES = ["tokenizer_llama2_hf", "tokenizer_mistral_hf", "stories260K", "tiny", "neox"]


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request, checkpoint, shared_data, tmp_path_factory):
    folder = {"tiny": checkpoint, "demo": DEMO / "checkpoint"}.get(request.param, shared_data / request.param)
    if request.param == "neox":
        folder = tmp_path_factory.mktemp("neox")
        (folder / "tokenizer.json").write_bytes((shared_data / "tokenizer_neox_pythia/20B_tokenizer.json").read_bytes())
    return Tokenizer(folder)


def feed_all(stream, ids):
    pieces = [stream.feed(i) for i in ids]
    return [*pieces, stream.close()]


def test_pieces_are_whole_characters_and_make_up_the_text(tokenizer):
    ids = tokenizer.encode(TEXT, bos=False)
    pieces = feed_all(TextStream(tokenizer), ids)
    assert "".join(pieces) == tokenizer.decode(ids) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert sum(map(bool, pieces)) > 15


def test_text_behind_a_prompt_keeps_its_leading_space(tokenizer):
    prompt, more = tokenizer.encode("the red", bos=False), tokenizer.encode_more(" cat sees")
    assert "".join(feed_all(TextStream(tokenizer, before=prompt), more)) == " cat sees"


def test_stop_sequences_do_not_leak_and_text_before_is_kept(tokenizer):
    """Every span of the text as a stop sequence, wherever the tokens divide it; also one that begins like it and is none."""
    ids = tokenizer.encode(TEXT, bos=False)
    for start in range(0, len(TEXT) - 6, 3):
        stop = TEXT[start : start + 5]
        stream, shown = TextStream(tokenizer, ["Größe: 4", stop]), ""
        for token in ids:
            shown += stream.feed(token)
            assert TEXT[: TEXT.find(stop)].startswith(shown)
            if stream.stopped:
                break
        assert stream.stopped
        assert shown == stream.text == TEXT[: TEXT.find(stop)]


def test_what_only_began_like_a_stop_sequence_comes_in_the_end(tokenizer):
    ids = tokenizer.encode("the red cat", bos=False)
    pieces = feed_all(TextStream(tokenizer, ["catalogue", "red dog"]), ids)
    assert "".join(pieces) == "the red cat"
    assert pieces[-1].endswith("cat")


def test_an_incomplete_character_is_shown_as_such_in_the_end(tokenizer):
    ids = tokenizer.encode("a🦜", bos=False)[:-1]
    *pieces, last = feed_all(TextStream(tokenizer), ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "\ufffd" in last


def test_an_empty_stop_sequence_is_refused(tokenizer):
    with pytest.raises(ValueError, match="must not be empty"):
        TextStream(tokenizer, [""])


@pytest.mark.parametrize("tokenizer", [*NAMES, "demo"], indirect=True)
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30) | st.text(LETTERS, max_size=30), start=st.integers(0, 20))
def test_token_texts_equal_the_library_decoding_prefixes(tokenizer, text, start):
    """Where a beginning of the tokens decodes to a beginning of the text, and from any token on."""
    ids = tokenizer.encode(text)
    assume("\ufffd" not in text and tokenizer.decode(ids) == text)  # some tokenizers normalise
    found = pieces(tokenizer, ids, text)
    assert token_texts(tokenizer, ids) == found
    joined = [""] + ["".join(found[:i]) for i in range(1, len(ids) + 1)]
    assert joined[-1] == text
    clean = [text.startswith(tokenizer.decode(ids[:i])) for i in range(len(ids) + 1)]
    assert all(joined[i] == tokenizer.decode(ids[:i]) for i in range(len(ids) + 1) if clean[i])
    start = min(start, len(ids))
    assert token_texts(tokenizer, ids[start:], ids[:start]) == found[start:]


def test_each_character_of_several_tokens_is_at_its_last(tokenizer):
    for text in ("🍕", "x🎉🎉", "안녕하세요 세계", "今日は良い天気ですね。", "龘靐齉", "ꦥꦥꦥꦥꦥꦥꦥꦥꦥꦥ"):
        for piece in pieces(tokenizer, tokenizer.encode(text), text):
            assert len(piece) <= 3 or piece in ("안녕하세요", "です")


def test_special_and_normalised_text_keeps_its_place(tokenizer):
    end = tokenizer.special_tokens.get("eos_token", "<|endoftext|>")
    text = f"the red {end} cat n\u0301o and a dog"
    found = pieces(tokenizer, tokenizer.encode(text), text)
    assert "".join(found) == text
    assert max(map(len, found)) <= len(" " + end)


@pytest.mark.parametrize("tokenizer", ["tiny", "neox"], indirect=True)
def test_invalid_utf_8_decodes_as_in_the_library(tokenizer):
    """It decodes tokens of single bytes elsewhere, `<0xF0>`, to a U+FFFD for each as soon as one of a stretch is wrong."""
    draw = random.Random(0)
    for _ in range(300):
        ids = [draw.randrange(tokenizer.vocab_size) for _ in range(draw.randint(1, 40))]
        start = draw.randint(0, len(ids))
        text, before = tokenizer.decode(ids), tokenizer.decode(ids[:start])
        stream = TextStream(tokenizer, before=ids[:start])
        assert "".join(token_texts(tokenizer, ids)) == text
        if text.startswith(before):
            assert "".join(feed_all(stream, ids[start:])) == text[len(before) :]


def test_half_a_character_costs_one_replacement(tokenizer):
    pizza, dog = (tokenizer.encode_more(c) for c in "🍕🐕")
    text = tokenizer.encode_more("abc")
    for half in (dog[:1], dog[:-1]):
        assert "".join(token_texts(tokenizer, [*pizza, *half, *text], tokenizer.encode("x"))) == "🍕\ufffdabc"
        assert "".join(token_texts(tokenizer, [*half, *pizza, *text], tokenizer.encode("x"))) == "\ufffd🍕abc"


def test_a_prompt_may_end_within_a_character(tokenizer):
    ids, more = tokenizer.encode("a 🍕"), tokenizer.encode_more(" is fun")
    n = len(tokenizer.encode("a"))
    for cut in range(n + 1, len(ids)):
        assert "".join(token_texts(tokenizer, [*ids[cut:], *more], ids[:cut])).lstrip() == "🍕 is fun"
        assert "".join(token_texts(tokenizer, more, ids[:cut])) == " is fun"


def test_multi_token_characters_in_a_prompt_do_not_spoil_text(tokenizer):
    for n in range(20):
        prompt, more = tokenizer.encode("a" * n + "ꦥ" * 12), tokenizer.encode_more("ꦥꦥ yes")
        assert "".join(token_texts(tokenizer, more, prompt)) == "ꦥꦥ yes"
