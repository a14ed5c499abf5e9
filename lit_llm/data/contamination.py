"""Find training texts that share words with the texts of an evaluation.

N words in a row count, ignoring punctuation and case, where N is the 5th percentile of the lengths of the texts, at least 8
and at most 13 (Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lit_llm.data.file_readers import rows_of
from lit_llm.data.shards import TEXTS
from lit_llm.data.streams import format_of, open_text
from lit_llm.errors import DataError

MIN_WORDS, MAX_WORDS = 8, 13
MAX_TEXTS = 10
"""Words that occur in more texts of the evaluation are taken for the wording of its prompts."""


class Overlap:
    """Index of the texts of an evaluation.

    Attributes:
        n_words: Length of the overlap that counts.
        n_texts: Number of texts that are compared.
        n_short: Number of texts that are shorter than `n_words`, and are not compared.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        found = [words for words in map(_words, dict.fromkeys(texts)) if words]
        lengths = sorted(len(words) for words in found if len(words) >= MIN_WORDS)
        self.n_words = min(lengths[len(lengths) // 20], MAX_WORDS) if lengths else MIN_WORDS
        compared = [words for words in found if len(words) >= self.n_words]
        self.n_texts, self.n_short = len(compared), len(found) - len(compared)
        counts = Counter(gram for words in compared for gram in {*self._grams(words)})
        self._found = {gram for gram, n in counts.items() if n <= MAX_TEXTS}

    def has(self, text: str) -> bool:
        """Return whether a text shares `n_words` words in a row with the evaluation."""
        return any(gram in self._found for gram in self._grams(_words(text)))

    def _grams(self, words: list[str]) -> Iterator[int]:
        """Yield 64-bit hashes, which Python draws for each process: 20 bytes less each than digests, and faster."""
        n = self.n_words
        return (hash(" ".join(words[i : i + n])) for i in range(len(words) - n + 1))


@dataclass(frozen=True)
class Evaluation:
    """Files whose texts must not be in the data; the digest identifies their content."""

    files: tuple[Path, ...]
    sha256: str


@lru_cache(maxsize=1)
def overlap_of(evaluation: Evaluation) -> Overlap:
    """Return the index of evaluation files: lines of text files, and strings in the rows of others, except system prompts.

    Raises:
        DataError: if no text is long enough.
    """
    overlap = Overlap(text for file in evaluation.files for text in _texts(file))
    if not overlap.n_texts:
        raise DataError(
            f"`contamination` {evaluation.files[0]}: no text has {MIN_WORDS} words or more. Name a file of evaluation rows"
        )
    return overlap


def _texts(file: Path) -> Iterator[str]:
    if format_of(file) in TEXTS:
        with open_text(file) as lines:
            yield from lines
    else:
        for row in rows_of(file):
            yield from _strings(row)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict) and "system" not in (value.get("role"), value.get("from")):
        for name, item in value.items():
            yield from () if name == "system" else _strings(item)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
