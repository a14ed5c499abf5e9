"""Names of tokens in answers, which distinguish tokens whose text is part of a character or empty."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

from lit_llm.serving.engine import ScoredToken
from lit_llm.text.tokenizer import Tokenizer


class Name(NamedTuple):
    text: str
    data: bytes | None
    """UTF-8 bytes of the token; None if it has none, as a special token."""
    fixed: bool = True
    """The name does not depend on the text around the token."""


class TokenNames:
    """The names of a tokenizer's tokens, as OpenAI writes them.

    A part of a character is named by its bytes, `bytes:\\xc3`, and a special token by the string that it has in the vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.of_id = functools.cache(self._of_id)

    def _of_id(self, i: int) -> Name:
        """Return the name of a token that is not in an answer: as in the middle of a text."""
        text, data = self.tokenizer.decode_more([i]), self.tokenizer.token_bytes(i)
        if not text:
            return Name(self.tokenizer.token_string(i) or f"token_id:{i}", None)
        try:
            data.decode()
        except UnicodeDecodeError:
            return Name("bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data)
        return Name(text, text.encode(), fixed=False)

    def of(self, token: ScoredToken) -> Name:
        """Return the name of a token of an answer: its text, unless it is a part of a character. Special tokens have none."""
        name = self.of_id(token.id)
        return name if name.fixed and name.data else Name(token.text, token.text.encode() or name.data)

    def top(self, token: ScoredToken) -> list[tuple[int, Name, float]]:
        """Return the most likely tokens at the place of a token, most likely first: id, name and log-probability."""
        own = self.of_id(token.id)
        own = own if own.fixed else self.of(token)
        return [(i, own if i == token.id else self.of_id(i), log_prob) for i, log_prob in token.score.top.items()]


def by_name(top: Iterable[tuple[int, Name, float]]) -> dict[str, float]:
    """Return log-probabilities by name. If several tokens have one name, all except the first are named by their ids."""
    found: dict[str, float] = {}
    for i, name, log_prob in top:
        found[f"token_id:{i}" if name.text in found else name.text] = log_prob
    return found
