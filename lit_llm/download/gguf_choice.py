"""Which GGUF file of a repository to download."""

import re
from collections.abc import Mapping, Sequence

from lit_llm.download.resumable import size_text
from lit_llm.errors import CheckpointError

_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
# Next to the language model: projections of images, and importance matrices that quantization used.
_OTHERS = re.compile(r"mmproj|imatrix", re.IGNORECASE)


def choose_gguf(repo_id: str, sizes: Mapping[str, int], wanted: str | None) -> list[str]:
    """Return the names of one GGUF file, which may have several parts.

    Args:
        sizes: Bytes of each file of the repository.
        wanted: A part of the name, in any case: a type as `Q4_K_M`, or a whole name. None: the only file.

    Raises:
        CheckpointError: if none or several fit.
    """
    parts: dict[str, list[str]] = {}
    for name in sorted(sizes):
        if name.endswith(".gguf") and not _OTHERS.search(name):
            parts.setdefault(_PART.sub(".gguf", name), []).append(name)
    found = {model: names for model, names in parts.items() if wanted is None or _fits(wanted, model, names)}
    if len(found) == 1:
        return next(iter(found.values()))
    if not parts:
        raise CheckpointError(f"{repo_id} has no GGUF file in its top folder. Omit `gguf`, or choose another `repo_id`")
    listed = ", ".join(_shown(model, names, sizes) for model, names in (found or parts).items())
    if not found:
        raise CheckpointError(f"{repo_id} has no GGUF file with {wanted} in its name, but {listed}. Choose one with `gguf`")
    raise CheckpointError(f"{repo_id} has several GGUF files: {listed}. Choose one with `gguf`, as in `gguf` Q4_K_M")


def _fits(wanted: str, model: str, names: Sequence[str]) -> bool:
    """Return whether a name is, or has as a word of it, what is wanted: Q4_K is not a part of Q4_K_M."""
    exact = wanted in (model, *names)
    return exact or re.search(rf"(?<![A-Za-z0-9_]){re.escape(wanted)}(?![A-Za-z0-9_])", model, re.IGNORECASE) is not None


def _shown(model: str, names: Sequence[str], sizes: Mapping[str, int]) -> str:
    return f"{model} ({size_text(sum(sizes[name] for name in names))})"
