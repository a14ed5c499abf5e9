"""The tokens and strings that end a generated text.

Everything that generates takes an `Ending`: a model that learned to close its turns with a token that is not EOS, such as
`<|im_end|>`, would otherwise continue with the user's next turn.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from lit_llm.text.conversation import closing_of, prompt_style
from lit_llm.text.styles import Turns
from lit_llm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Ending:
    """A text ends at the first of these tokens or strings; neither is part of it."""

    ids: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()

    def with_strings(self, more: Iterable[str]) -> "Ending":
        return Ending(self.ids, (*self.strings, *more))


def raw_ending(tokenizer: Tokenizer) -> Ending:
    """Return the ending of a text that no prompt style shapes: the EOS tokens."""
    return Ending(tokenizer.eos_ids)


def ending(style: str, tokenizer: Tokenizer) -> Ending:
    """Return the ending of an answer in the style of this name: EOS, what closes a turn, and what begins the next turn."""
    found = prompt_style(style, tokenizer)
    next_turn = found.stop if isinstance(found, Turns) else ()
    closing = closing_of(found, tokenizer.special_tokens).strip()
    first = tokenizer.encode_more(closing)[:1]
    if tokenizer.decode(first):  # plain text: special tokens decode to nothing
        return Ending(tokenizer.eos_ids, (*next_turn, closing))
    return Ending(tokenizer.eos_ids.union(first), next_turn)
