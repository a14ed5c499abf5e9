"""Decide which records to keep: each once, of a sensible length. Only an index grows with the data."""

import hashlib
import json
import re
import zlib
from typing import Any

from lit_llm.data.records import Record, answer_of, asked, calls_of, turns_of


class Curation:
    """Filter that sees one record after another.

    Args:
        near_duplicates: Jaccard similarity from which records are duplicates. If None, only equal records are.
        max_examples: Keep at most this many records, the first ones.
    """

    def __init__(
        self, near_duplicates: float | None, min_answer_chars: int, max_chars: int | None, max_examples: int | None
    ) -> None:
        self.min_answer_chars, self.max_chars, self.max_examples = min_answer_chars, max_chars, max_examples
        self._seen: set[bytes] = set()
        self._similar = None if near_duplicates is None else Similar(near_duplicates)
        self._pairs: bool | None = None
        self._n_kept = 0

    def reason(self, record: Record) -> str | None:
        """Return the reason to drop a record, or None to keep it."""
        if self._pairs is not None and ("chosen" in record) != self._pairs:
            return "preference pairs and other rows do not mix: the first row is of the other kind"
        if "chosen" in record and record["chosen"] == record["rejected"]:
            return "'chosen' and 'rejected' are the same"
        if self.max_chars is not None and len(text_of(record)) > self.max_chars:
            return f"longer than max_chars={self.max_chars}"
        if "text" not in record and not calls_of(record) and len(answer_of(record)) < self.min_answer_chars:
            return f"the answer is shorter than min_answer_chars={self.min_answer_chars}"
        text = json.dumps(record, sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:12]
        if digest in self._seen:
            return "duplicate"
        if self.max_examples is not None and self._n_kept >= self.max_examples:
            return f"beyond max_examples={self.max_examples}"
        if self._similar is not None and self._similar.seen(text_of(record)):
            return "near duplicate"
        self._seen.add(digest)
        self._pairs = "chosen" in record
        self._n_kept += 1
        return None


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


class Similar:
    """Index of texts by MinHash signatures in bands (Leskovec et al., Mining of Massive Datasets, 3.3-3.4).

    Two texts with Jaccard similarity s of their shingles (3 words) agree in each hash with probability s, so that a band of r
    rows agrees with s^r, and at least one of b bands with 1 - (1 - s^r)^b.
    """

    N_HASHES = 128

    def __init__(self, threshold: float) -> None:
        import numpy as np

        draw = np.random.default_rng(0)
        self.threshold = threshold
        self._a, self._b = (draw.integers(1, 2**64, self.N_HASHES, dtype=np.uint64) for _ in range(2))
        # The most rows per band with which 95 % of the pairs at the threshold are still found.
        rows = [r for r in (1, 2, 4, 8, 16) if 1 - (1 - threshold**r) ** (self.N_HASHES // r) >= 0.95]
        self._rows = max(rows)
        self._bands: dict[bytes, int] = {}
        self._signatures: list[Any] = []

    def seen(self, text: str) -> bool:
        """Return True if a similar text came before; otherwise remember this one."""
        import numpy as np

        words = re.findall(r"\w+", text.lower())
        shingles = {" ".join(words[i : i + 3]) for i in range(max(len(words) - 2, 1))}
        hashes = np.fromiter((zlib.crc32(s.encode()) for s in shingles), np.uint64, len(shingles))
        signature = np.full(self.N_HASHES, 2**32 - 1, np.uint32)
        for start in range(0, len(hashes), 4096):  # a long text must not fill the memory
            part = (hashes[start : start + 4096, None] * self._a + self._b) >> np.uint64(32)  # multiply-shift, modulo 2^64
            signature = np.minimum(signature, part.min(0).astype(np.uint32))
        keys = [bytes([i]) + signature[i : i + self._rows].tobytes() for i in range(0, self.N_HASHES, self._rows)]
        candidates = {self._bands[key] for key in keys if key in self._bands}
        if any((self._signatures[i] == signature).mean() >= self.threshold for i in candidates):
            return True
        for key in keys:
            self._bands.setdefault(key, len(self._signatures))
        self._signatures.append(signature)
        return False
