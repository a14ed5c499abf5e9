"""Tokens to text as they come."""

from collections.abc import Sequence

from lit_llm.tokenizer import Tokenizer


class TextStream:
    """Feed it tokens, and it returns text that is certain: no half of a character, and no part of a stop sequence.

    What may be the beginning of a stop sequence is held back until it is one or is not, also across tokens. All that `feed` and
    `close` returned makes up the text before the earliest stop sequence.

    Attributes:
        stopped: Whether a stop sequence was found; the text is then complete.
        text: All that was returned so far.

    Args:
        before: Tokens that the text continues. With some tokenizers a text that continues nothing loses its leading space.

    Raises:
        ValueError: if a stop sequence is empty.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        if "" in stop:
            raise ValueError("a stop sequence must not be empty")
        self.tokenizer, self.stop = tokenizer, list(stop)
        self.stopped, self.text = False, ""
        self._ids = list(before)  # what decides how the next tokens are written, then those not yet written
        self._known = len(self._ids)  # tokens of `_ids` whose text is out
        self._held = ""  # decoded, and possibly the beginning of a stop sequence

    def feed(self, token: int) -> str:
        """Text that became certain with this token; it may be empty."""
        self._ids.append(token)
        return "" if self.stopped else self._release(self._decode(final=False), final=False)

    def close(self) -> str:
        """What was held back, once no more tokens come."""
        return "" if self.stopped else self._release(self._decode(final=True), final=True)

    def _decode(self, final: bool) -> str:
        """Text of the tokens that were not written yet, unless it ends within a character."""
        text = self.tokenizer.decode(self._ids)
        old = self.tokenizer.decode(self._ids[: self._known])
        if len(text) <= len(old) or (text.endswith("\ufffd") and not final):
            return ""
        # The tokens just written suffice as context: they have text, so that a leading space is taken from them alone.
        del self._ids[: self._known]
        self._known = len(self._ids)
        return text[len(old) :]

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


def earliest(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of the stop sequences begins in `text`, or None."""
    return min((where for s in stop if (where := text.find(s)) >= 0), default=None)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop`, not all of it, with which `text` ends."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
