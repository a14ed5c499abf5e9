"""What tokens look like one by one, so that those of a text join to it."""

from collections.abc import Callable, Sequence

from lit_llm.tokenizer import Tokenizer

WINDOW = 16  # tokens before one that decide how it is written


def pieces(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[str]:
    """What each token contributes to `text`, which they make up; joined they are `text`.

    A character of several tokens belongs to its last. Tokens that a special token or the tokenizer's normalisation keep out
    of the text are "".
    """
    found, done = [], 0
    for i in range(len(ids)):
        start = max(0, i - WINDOW)
        old, new = tokenizer.decode(ids[start:i]), tokenizer.decode(ids[start : i + 1])
        while old.endswith("\ufffd"):
            old = old[:-1]
        piece = "" if new.endswith("\ufffd") else new[len(old) :]
        if not text.startswith(piece, done):  # what is decoded is not what was encoded
            piece = ""
        found.append(piece)
        done += len(piece)
    if found:
        found[-1] += text[done:]
    return found


def candidate_text(tokenizer: Tokenizer) -> Callable[[int], str]:
    """A function from a token to its text within a text: by itself it would lose its leading space."""
    anchor = tokenizer.encode("a", bos=False)
    skipped = len(tokenizer.decode(anchor))
    return lambda token: tokenizer.decode([*anchor, token])[skipped:]
