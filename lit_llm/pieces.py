"""What tokens look like one by one, so that those of a text join to it."""

from collections.abc import Callable, Sequence

from lit_llm.text_stream import token_texts
from lit_llm.tokenizer import Tokenizer

GAP = 32  # characters of a text that its tokens may lack at one place


def pieces(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[str]:
    """What each token contributes to `text`, which they make up; joined they are `text`.

    A character of several tokens belongs to its last. What the tokens lack, as the text of a special token or what the
    tokenizer normalises, belongs to the token before it.
    """
    found, done = [], 0
    for piece in token_texts(tokenizer, ids):
        where = text.find(piece, done, done + len(piece) + GAP)
        end = done if where < 0 else where + len(piece)
        if found and where > done:
            found[-1] += text[done:where]
            done = where
        found.append(text[done:end])
        done = end
    if found:
        found[-1] += text[done:]
    return found


def candidate_text(tokenizer: Tokenizer) -> Callable[[int], str]:
    """A function from a token to its text within a text: by itself it would lose its leading space."""
    return lambda token: tokenizer.decode_more([token])
