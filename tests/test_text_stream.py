"""Streamed text against the text decoded at once, with the tokenizers of published models."""

import pytest

from lit_llm.text_stream import TextStream
from lit_llm.tokenizer import Tokenizer

TEXT = 'Größe: 3 € - "naïve" café 😀😀 日本語\n\n  def f(x):\n\treturn x  # 👩‍👩‍👧 ok'


@pytest.fixture(params=["tokenizer_llama2_hf", "tokenizer_mistral_hf", "stories260K", "tiny"])
def tokenizer(request, checkpoint, shared_data):
    return Tokenizer(checkpoint if request.param == "tiny" else shared_data / request.param)


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


def test_no_part_of_a_stop_sequence_leaks_and_nothing_before_it_is_lost(tokenizer):
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
