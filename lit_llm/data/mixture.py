"""Several sources of examples in one run, each drawn as often as its weight says."""

import glob
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from lit_llm.errors import OptionError


@dataclass(frozen=True)
class Source:
    """A data folder, or a file, folder or pattern of rows."""

    name: str
    """In the columns of `metrics.csv`: that of the file without its suffix, or of the folder; different for each source."""
    path: Path
    weight: float | None


def sources_of(data_dir: Path) -> list[Source]:
    """Return the sources that `data_dir` lists, as in `a.jsonl:0.7,b`: one or more paths, each with or without a weight.

    Raises:
        OptionError: if a path is listed twice, or the weights leave nothing to draw.
    """
    parts = [str(data_dir)] if data_dir.exists() else str(data_dir).split(",")
    sources: list[Source] = []
    for part in parts:
        match = None if Path(part).exists() else re.fullmatch(r"(.+):([^:/\\]+)", part.strip())
        path, weight = (Path(part.strip()), None) if match is None else (Path(match[1]), _weight(part, match[2]))
        if not part.strip():
            raise OptionError(f"`data_dir` {data_dir} lists an empty path. Separate paths by single commas")
        if any(path.resolve() == other.path.resolve() for other in sources):
            raise OptionError(f"`data_dir` lists {path} twice. List it once, with the sum of the weights")
        name = path.parent.resolve().name if glob.has_magic(path.name) else path.stem if path.suffix else path.resolve().name
        same = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", other.name) is not None for other in sources)
        sources.append(Source(f"{name}-{same + 1}" if same else name, path, weight))
    given = [source.weight for source in sources if source.weight is not None]
    if len(given) == len(sources) and not sum(given):
        raise OptionError(f"the weights in `data_dir` {data_dir} sum to 0: nothing would be trained")
    if given and len(given) < len(sources) and sum(given) >= 1:
        raise OptionError(
            f"the weights in `data_dir` {data_dir} sum to {sum(given):g}: nothing is left of 1 for the sources without one. "
            "Specify a weight for each"
        )
    return sources


def _weight(part: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise OptionError(f"`data_dir` {part}: the weight {text!r} must be a number from 0, as in a.jsonl:0.7")
    return weight


def n_drawn(sizes: Sequence[int], weights: Sequence[float | None]) -> list[int]:
    """Return how many examples of each source an epoch has: all that there are, shared out by the weights.

    Sources without a weight share what the others leave of 1, by their sizes. Weights of all sources count by their ratios.
    The largest remainders are rounded up.
    """
    total = sum(sizes)
    open_sizes = sum(size for size, weight in zip(sizes, weights, strict=True) if weight is None)
    given = sum(weight for weight in weights if weight is not None)
    rest = 1 - given if open_sizes else 0.0
    wanted = [
        total * (rest * size / open_sizes if weight is None else weight) / (rest + given)
        for size, weight in zip(sizes, weights, strict=True)
    ]
    counts = [math.floor(n) for n in wanted]
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - wanted[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


@dataclass(frozen=True)
class Draws:
    """How often the examples of each source are drawn. Each source is one endless stream, in which every example comes once
    before any comes again; an epoch takes the next ones of it. So all is a function of seed and epoch."""

    sizes: tuple[int, ...]
    """Examples of each source, whose indices follow those of the source before."""
    counts: tuple[int, ...]
    """Examples of each source in an epoch; their sum is the number of all examples."""

    def order(self, seed: int, epoch: int) -> Tensor:
        """Return the indices of an epoch's examples in the order in which they are trained."""
        return _order(self, seed, epoch)

    def n_seen(self, seed: int, epoch: int, n: int) -> list[int]:
        """Return how many examples of each source come before example `n` of an epoch, those of earlier epochs included."""
        ends = torch.tensor(self.sizes).cumsum(0)
        source = torch.bucketize(self.order(seed, epoch)[:n], ends, right=True)
        found = source.bincount(minlength=len(self.sizes)).tolist()
        return [epoch * count + now for count, now in zip(self.counts, found, strict=True)]


@lru_cache(maxsize=1)
def _order(draws: Draws, seed: int, epoch: int) -> Tensor:
    shuffled = _permutation(sum(draws.counts), seed * 1_000_003 + epoch)
    if draws.sizes == draws.counts:
        return shuffled
    parts, start = [], 0
    for number, (size, count) in enumerate(zip(draws.sizes, draws.counts, strict=True)):
        first, end = epoch * count, (epoch + 1) * count
        rounds = range(first // size, math.ceil(end / size))
        stream = [_permutation(size, (seed * 1_000_003 + this) * 1009 + number) for this in rounds]
        parts += [torch.cat(stream)[first % size :][:count] + start] if count else []
        start += size
    return torch.cat(parts)[shuffled]


def _permutation(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))
