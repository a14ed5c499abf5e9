"""Linears of transformers and ours: an update of one of theirs is an update of each of ours that it holds, and vice versa.

r is the rank; C_in, C_out are the features of a linear.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_llm.args.finetune import FinetuneArgs, LoRAArgs
from lit_llm.args.measure import EstimateArgs
from lit_llm.checkpoint.tables import TABLES
from lit_llm.checkpoint.tables.rows import Fused, names_of
from lit_llm.errors import OptionError
from lit_llm.methods.inject import GROUPS, OF_LATENTS, as_list, short_names
from lit_llm.model.config import Config
from lit_llm.model.families import TextPart
from lit_llm.model.gpt import GPT
from lit_llm.schema import shown

RENAMED = {"embed_out": "lm_head"}
"""Modules that transformers 5 names otherwise than files of weights, and than adapters from before it."""
Options = TypeVar("Options", FinetuneArgs, EstimateArgs)

_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class LowRank:
    """The factors of an update scale * B A, with DoRA's magnitude of each row."""

    A: Tensor  # (r, C_in)
    B: Tensor  # (C_out, r)
    magnitude: Tensor | None = None  # (C_out,)


@dataclass(frozen=True)
class UpstreamLinear:
    """A linear of transformers that holds one or several of ours, one below the other."""

    name: str
    """The module in transformers, without a prefix of PEFT."""
    entry: str | Fused
    parts: tuple[str, ...]
    """Full names of ours, in the order of `entry`."""
    in_features: int
    out_features: tuple[int, ...]
    """One for each part."""

    def join(self, config: Config, tensors: Sequence[Tensor]) -> Tensor:
        """Return the rows of all parts in upstream's order. PEFT's B has them along dim 0, even for a Conv1D."""
        return tensors[0] if isinstance(self.entry, str) else replace(self.entry, transposed=False).join(config, tensors)

    def split(self, config: Config, tensor: Tensor) -> Sequence[Tensor]:
        """Inverse of `join`."""
        return [tensor] if isinstance(self.entry, str) else replace(self.entry, transposed=False).split(config, tensor)

    def join_updates(self, config: Config, updates: Mapping[str, LowRank], norms: Mapping[str, Tensor]) -> LowRank:
        """Return one update for those of the parts, some of which may have none.

        [B_q A_q; 0; B_v A_v] = B A with A = [A_q; A_v] and B block diagonal, with zero rows for parts without an update.

        Args:
            norms: Norms of the rows of each part, which are DoRA's magnitudes where it has no update.
        """
        found = [updates.get(part) for part in self.parts]
        present = [update for update in found if update is not None]
        blocks = [torch.zeros(n, 0) if u is None else u.B for u, n in zip(found, self.out_features, strict=True)]
        magnitudes = [norms.get(p) if u is None else u.magnitude for p, u in zip(self.parts, found, strict=True)]
        return LowRank(
            torch.cat([update.A for update in present]),
            self.join(config, torch.block_diag(*blocks).split([len(block) for block in blocks])),
            self.join(config, [m for m in magnitudes if m is not None]) if present[0].magnitude is not None else None,
        )

    def split_updates(self, config: Config, update: LowRank) -> dict[str, LowRank]:
        """Return the update of each part; the inverse of `join_updates`.

        Parts share the rows of A. One whose column of B is zero in a part, and not in another, adds nothing there.
        """
        b = self.split(config, update.B)
        magnitudes = [None] * len(b) if update.magnitude is None else self.split(config, update.magnitude)
        used = torch.stack([(part != 0).any(0) for part in b])  # (parts, r)
        used |= ~used.any(0)
        found = {}
        for name, part, magnitude, kept in zip(self.parts, b, magnitudes, used, strict=True):
            if magnitude is not None and not kept.any():
                kept = torch.ones_like(kept)  # the magnitude scales rows without an update too
            if kept.any():
                found[name] = LowRank(update.A[kept].clone(), part[:, kept].clone(), magnitude)
        return found


def upstream_linears(model: GPT, part: TextPart | None = None) -> dict[str, UpstreamLinear]:
    """Return the linears of transformers that hold those of the model, by their module in transformers.

    Experts are not linears there. With `part` the modules are those of the multimodal model.
    """
    linears = [name for name, module in model.named_modules() if hasattr(module, "in_features")]
    rows = {ours: row for row in TABLES[model.config.model_type](model.config).items() for ours in names_of(row[1])}
    found = {}
    for name in linears:
        theirs, entry = rows.get(_INDEX.sub("{}", name), ("", None))
        if not isinstance(entry, str | Fused):
            continue  # of parts that transformers does not hold as linears
        indices = _INDEX.findall(name)
        parts = tuple(ours.format(*indices) for ours in names_of(entry))
        if parts[0] == name:
            module = theirs.format(*indices)
            module = RENAMED.get(module, module)
            module = module if part is None else part.stored_names(module)[0]
            found[module] = upstream_linear(model, module, entry, parts)
    return found


def upstream_linear(model: GPT, name: str, entry: str | Fused, parts: Sequence[str]) -> UpstreamLinear:
    """Return the linear called `name` that holds `parts` of the model."""
    linears: list[Any] = [model.get_submodule(part) for part in parts]
    return UpstreamLinear(name, entry, tuple(parts), linears[0].in_features, tuple(part.out_features for part in linears))


def resolve_targets(model: GPT, targets: str | list[str]) -> str | list[str]:
    """Return targets with names of transformers, as `q_proj` or `model.layers.0.mlp.down_proj`, replaced by ours.

    Raises:
        OptionError: for a name that neither has; the message lists all.
    """
    upstream, short = upstream_linears(model), short_names(model)
    ours: list[str] = []
    for target in as_list(targets):
        if target in GROUPS or target in OF_LATENTS or target in short.values():
            ours.append(target)
            continue
        module = RENAMED.get(target, target)
        found = [target] if target in short else []
        found = found or [part for name, linear in upstream.items() if _ends_with(name, module) for part in linear.parts]
        if not found:
            theirs = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in upstream))
            raise OptionError(
                f"target {shown(target)} matches no linear of this model; it has {', '.join(dict.fromkeys(short.values()))}; "
                f"in transformers {theirs}; groups: {', '.join(GROUPS)}"
            )
        ours += names_in_all_layers(model, found)
    if isinstance(targets, list):
        return list(dict.fromkeys(ours))
    return ",".join(dict.fromkeys(ours))


def with_our_targets(args: Options, model: GPT) -> Options:
    """Return options whose `lora.targets` are resolved."""
    lora = getattr(args, "lora", None)
    if not isinstance(lora, LoRAArgs):
        return args
    return replace(args, lora=replace(lora, targets=resolve_targets(model, lora.targets)))  # type: ignore[call-arg]


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def names_in_all_layers(model: GPT, linears: Sequence[str]) -> list[str]:
    """Return the shortest targets for these linears: `q` for those of all layers, and full names for the others."""
    short, wanted = short_names(model), {*linears}
    partial = {short.get(name) for name in short if name not in wanted}
    return list(dict.fromkeys(s if (s := short.get(name)) and s not in partial else name for name in linears))
