"""Decide which records to keep: each once, of a sensible length. Only an index grows with the data."""

import hashlib
import json
import re
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

from lit_llm.data.contamination import Evaluation, overlap_of
from lit_llm.data.records import Record, answer_of, asked, calls_of, turns_of


@dataclass(frozen=True)
class Checks:
    """Decisions about a record that do not depend on the others."""

    min_answer_chars: int
    max_chars: int | None
    near_duplicates: float | None
    evaluation: Evaluation | None = None

    def reason(self, record: Record) -> str | None:
        """Return the reason to drop a record, or None."""
        if "chosen" in record and record["chosen"] == record["rejected"]:
            return "'chosen' and 'rejected' are the same"
        if self.max_chars is not None and len(text_of(record)) > self.max_chars:
            return f"longer than max_chars={self.max_chars}"
        if "text" not in record and not calls_of(record) and len(answer_of(record)) < self.min_answer_chars:
            return f"the answer is shorter than min_answer_chars={self.min_answer_chars}"
        if self.evaluation is not None:
            overlap = overlap_of(self.evaluation)
            if any(map(overlap.has, (text_of(record), record.get("rejected", "")))):
                return f"shares {overlap.n_words} words in a row with the evaluation"
        return None

    def signature(self, record: Record) -> str:
        """Return what `Selection` compares to find near duplicates, in hex. It is empty if they are not dropped."""
        return "" if self.near_duplicates is None else signature(text_of(record)).tobytes().hex()


class Selection:
    """Filter that sees one record after another and keeps an index of them.

    Args:
        near_duplicates: Jaccard similarity from which records are duplicates. If None, only equal records are.
        max_examples: Keep at most this many records, the first ones.
    """

    def __init__(self, near_duplicates: float | None, max_examples: int | None) -> None:
        self.max_examples = max_examples
        self._seen: set[bytes] = set()
        self._similar = None if near_duplicates is None else Similar(near_duplicates)
        self._pairs: bool | None = None
        self._n_kept = 0

    def reason(self, is_pair: bool, digest: str, signature: str) -> str | None:
        """Return the reason to drop a record, or None to keep it.

        Args:
            digest: See `digest`.
            signature: See `Checks.signature`.
        """
        if self._pairs is not None and is_pair != self._pairs:
            return "preference pairs and other rows do not mix: the first row is of the other kind"
        key = bytes.fromhex(digest)
        if key in self._seen:
            return "duplicate"
        if self.max_examples is not None and self._n_kept >= self.max_examples:
            return f"beyond max_examples={self.max_examples}"
        if self._similar is not None and self._similar.seen(bytes.fromhex(signature)):
            return "near duplicate"
        self._seen.add(key)
        self._pairs = is_pair
        self._n_kept += 1
        return None


def digest(record: Record) -> str:
    """Return 12 bytes in hex that equal records have in common."""
    text = json.dumps(record, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def text_of(record: Record) -> str:
    """Return all strings of a record as one."""
    if "text" in record:
        return record["text"]
    fields = [field for turn in turns_of(record) for field in turn.items()]
    calls = [json.dumps(value, ensure_ascii=False) for name, value in fields if name == "tool_calls"]
    return "\n".join([value for name, value in fields if name != "role" and isinstance(value, str) and value] + calls)


def share(record: Record, seed: int) -> float:
    """Return a number in [0, 1) that depends only on the question.

    Appending rows then moves no row to the other side of a split, and answers to one question are on the same side.
    """
    about = record["text"] if "text" in record else json.dumps([dict(m) for m in asked(record)], sort_keys=True)
    text = json.dumps([seed, about])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


N_HASHES = 128


def signature(text: str) -> Any:
    """Return the MinHash signature (N_HASHES,) of a text's shingles, which are three words long."""
    import numpy as np

    a, b = _drawn()
    words = re.findall(r"\w+", text.lower())
    shingles = {" ".join(words[i : i + 3]) for i in range(max(len(words) - 2, 1))}
    hashes = np.fromiter((zlib.crc32(s.encode()) for s in shingles), np.uint64, len(shingles))
    found = np.full(N_HASHES, 2**32 - 1, np.uint32)
    for start in range(0, len(hashes), 4096):  # a long text must not fill the memory
        part = (hashes[start : start + 4096, None] * a + b) >> np.uint64(32)  # multiply-shift, modulo 2^64
        found = np.minimum(found, part.min(0).astype(np.uint32))
    return found


@cache
def _drawn() -> list[Any]:
    """Return the factors and summands of N_HASHES hash functions."""
    import numpy as np

    draw = np.random.default_rng(0)
    return [draw.integers(1, 2**64, N_HASHES, dtype=np.uint64) for _ in range(2)]


class Similar:
    """Index of texts by MinHash signatures in bands (Leskovec et al., Mining of Massive Datasets, 3.3-3.4).

    Two texts with Jaccard similarity s of their shingles agree in each hash with probability s, so that a band of r rows
    agrees with s^r, and at least one of b bands with 1 - (1 - s^r)^b.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        # The most rows per band with which 95 % of the pairs at the threshold are still found.
        rows = [r for r in (1, 2, 4, 8, 16) if 1 - (1 - threshold**r) ** (N_HASHES // r) >= 0.95]
        self._rows = max(rows)
        self._bands: dict[bytes, int] = {}
        self._signatures: list[Any] = []

    def seen(self, signature: bytes) -> bool:
        """Return True if a similar text came before; otherwise remember this one."""
        import numpy as np

        found = np.frombuffer(signature, np.uint32)
        keys = [bytes([i]) + found[i : i + self._rows].tobytes() for i in range(0, N_HASHES, self._rows)]
        candidates = {self._bands[key] for key in keys if key in self._bands}
        if any((self._signatures[i] == found).mean() >= self.threshold for i in candidates):
            return True
        for key in keys:
            self._bands.setdefault(key, len(self._signatures))
        self._signatures.append(found)
        return False
