"""Text of tokens that come one at a time."""

from codecs import getincrementaldecoder
from collections.abc import Callable, Sequence
from itertools import islice

from lit_llm.errors import OptionError
from lit_llm.text.tokenizer import Tokenizer

N_BEFORE = 4  # tokens that decide how the next one is decoded: a character has at most 4 bytes, each possibly a token


class TextStream:
    """A decoder that returns certain text only: never half a character, and no part of a stop string.

    It holds back a possible beginning of a stop string, also across tokens. `feed` and `close` together return the text before
    the earliest stop string.

    Attributes:
        stopped: True once a stop string was found; the text is then complete.
        text: Everything returned so far.

    Args:
        before: Tokens that the text continues. Some tokenizers drop the leading space of a text that continues nothing. If
            these tokens end within a character, the next ones may complete it.

    Raises:
        OptionError: if a stop string is empty.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        if "" in stop:
            raise OptionError("`stop` must not be empty")
        self.tokenizer, self.stop = tokenizer, list(stop)
        self.stopped, self.text = False, ""
        self._held = ""  # decoded, and possibly the beginning of a stop string
        with_text = (i for i in reversed(before) if tokenizer.decode_more([i]))
        self._before = list(islice(with_text, N_BEFORE))[::-1]
        self._decoder = getincrementaldecoder("utf-8")("replace")
        for i in self._before:
            self._decoder.decode(tokenizer.token_bytes(i))
        self._completes = self.within  # the text before ends with a part of a character, which it shows as U+FFFD

    @property
    def within(self) -> bool:
        """True if the last token ended within a character."""
        return bool(self._decoder.getstate()[0])

    def feed(self, token: int) -> str:
        """Return the text that became certain with this token; it may be empty."""
        if self.stopped:
            return ""
        data = self.tokenizer.token_bytes(token, self._before)
        if self.tokenizer.decode_more([token]):
            self._before = [*self._before, token][-N_BEFORE:]
        return self._release(self._decode(data), final=False)

    def close(self) -> str:
        """Return the text that was held back; no more tokens follow."""
        return "" if self.stopped else self._release(self._decode(b"", final=True), final=True)

    def _decode(self, data: bytes, final: bool = False) -> str:
        text = self._decoder.decode(data, final)
        if text and self._completes:
            self._completes, text = False, text.removeprefix("\ufffd")
        return text

    def _release(self, text: str, final: bool) -> str:
        held = self._held + text
        found = earliest(held, self.stop)
        if found is not None:
            self.stopped, self._held, text = True, "", held[:found]
        else:
            n = 0 if final else max((_overlap(held, stop) for stop in self.stop), default=0)
            self._held, text = held[len(held) - n :], held[: len(held) - n]
        self.text += text
        return text


def token_texts(tokenizer: Tokenizer, ids: Sequence[int], before: Sequence[int] = ()) -> list[str]:
    """Return the text that each token adds after `before`. A character of several tokens belongs to the last of them."""
    stream = TextStream(tokenizer, before=before)
    texts = [stream.feed(i) for i in ids]
    if texts:
        texts[-1] += stream.close()
    return texts


def earliest(text: str, stop: Sequence[str]) -> int | None:
    """Return the index in `text` of the first of the stop strings, or None."""
    return min((where for s in stop if (where := text.find(s)) >= 0), default=None)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest incomplete beginning of `stop` that `text` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


GAP = 32  # characters of a text that its tokens may lack in one place


def pieces(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[str]:
    """Split `text` into the part of each token.

    A character of several tokens belongs to the last of them. Characters that no token decodes to, because they are part of a
    special token or were normalized, belong to the token before them.
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
    """Return a function from a token to its text within a longer text: decoded alone it would lose its leading space."""
    return lambda token: tokenizer.decode_more([token])
