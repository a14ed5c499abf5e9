"""Options of the scripts that download, convert and merge checkpoints."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_llm.args.base import Checked, Rules, bounds

GGUFType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]


@dataclass(frozen=True)
class ConvertHfArgs(Checked):
    """Conversion to the layout of lit_llm"""

    checkpoint_dir: Path
    """Folder with config.json and weights as Hugging Face publishes them, or one of Lit-GPT or litgpt with lit_model.pth. The
    result is written next to them."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """dtype of the result. Default: that of the source."""
    dequantize: bool = False
    """Write plain weights from quantized ones (bitsandbytes, GPTQ, AWQ, FP8, compressed-tensors, MXFP4), by default in the
    dtype of config.json."""


@dataclass(frozen=True)
class DownloadArgs(Checked):
    """Download"""

    repo_id: str | None = None
    """Repository on the Hugging Face hub, as ORG/NAME. Without it, a list of repositories is printed."""
    checkpoint_dir: Path = Path("checkpoints")
    """Folder of all checkpoints; this one is written to ORG/NAME in it."""
    revision: str | None = None
    """Branch, tag or commit. Default: the main branch."""
    access_token: str | None = None
    """Token for gated and private repositories. Default: that of HF_TOKEN or of `hf auth login`."""
    tokenizer_only: bool = False
    """Download config and tokenizer without the weights."""
    gguf: str | None = None
    """Download one GGUF file, with nothing else: the one that has this in its name, such as Q4_K_M. A repository that has GGUF
    files alone does not need it if there is one file."""

    def rules(self) -> Rules:
        part = r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?"
        parts = (self.repo_id or "").split("/")
        well_formed = len(parts) == 2 and all(re.fullmatch(part, name, re.ASCII) for name in parts)
        return [
            (
                self.repo_id is not None and not well_formed,
                f"`repo_id` takes ORG/NAME, as in EleutherAI/pythia-70m; found {self.repo_id}",
            ),
            *self.needs("repo_id", "revision", "access_token", "tokenizer_only", "gguf"),
            (self.tokenizer_only and self.gguf is not None, "`tokenizer_only` has no effect on a GGUF file. Omit one of them"),
        ]


@dataclass(frozen=True)
class ConvertLitArgs(Checked):
    """Conversion to the formats of Hugging Face and to GGUF"""

    checkpoint_dir: Path
    """Folder of the model; with adapter_dir, the base that the adapter was trained on."""
    output_dir: Path
    """Folder to write, which must be new or empty: for transformers, or with adapter_dir for PEFT; or for llama.cpp."""
    adapter_dir: Path | None = None
    """LoRA adapter to write in PEFT's format, or to merge into a GGUF file."""
    format: Literal["hf", "gguf"] = "hf"
    """hf: the formats of transformers and PEFT. gguf: the format of llama.cpp and Ollama."""
    gguf_type: GGUFType | list[GGUFType] = "f16"
    """Type of the matrices in the GGUF file, or a list of types, as in `[f16, q8_0]`, for a file of each."""
    adapter_only: bool = False
    """Write the adapter alone as a GGUF file, to be loaded over its base."""

    def rules(self) -> Rules:
        return [
            (
                self.format == "hf" and (self.gguf_type != "f16" or self.adapter_only),
                "`gguf_type` and `adapter_only` need `format` gguf",
            ),
            (self.adapter_only and self.adapter_dir is None, "`adapter_only` needs `adapter_dir`"),
            (self.adapter_only and self.gguf_type != "f16", "`gguf_type` is of a model; an adapter is written in float32"),
        ]


@dataclass(frozen=True)
class MergeLoRAArgs(Checked):
    """Merging of adapters into their base"""

    checkpoint_dir: Path
    """Folder of the base model. Quantized weights are dequantized first, and the result is written in 16 bits."""
    adapter_dir: Path | list[Path]
    """LoRA adapter, ours or PEFT's, or a list of them, as in `[out/a/final, out/b/final]`."""
    output_dir: Path
    """Folder to write the merged checkpoint into, which must be new or empty."""
    weights: list[float] | None = None
    """Factor of each adapter. Default: 1 for each; for slerp 0.5."""
    combine: Literal["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune", "slerp"] = "linear"
    """Combination of the changes of each weight. linear: weighted sum. ties: mean of the largest entries of one sign. dare: a
    random part of the entries, rescaled, then linear or ties. magnitude_prune: sum of the largest entries. slerp: along the arc
    between two adapters."""
    density: float | None = None
    """Share of the entries that ties, dare and magnitude_prune keep. Default: 0.5."""
    seed: int | None = None
    """Seed of the random choice of dare. Default: 1337."""

    def rules(self) -> Rules:
        n = len(self.adapter_dir) if isinstance(self.adapter_dir, list) else 1
        found = 0 if self.weights is None else len(self.weights)
        name, prunes, draws = self.combine, self.combine not in ("linear", "slerp"), self.combine.startswith("dare")
        slerps = name == "slerp"
        return [
            (found not in (0, n), f"`weights` has {found} numbers for {n} adapters"),
            (n == 1 and name != "linear", f"`combine` {name} needs several adapters. Specify a list as `adapter_dir`"),
            (slerps and n > 2, f"`combine` slerp takes two adapters, found {n}. Use ties, or merge them one after another"),
            (slerps and abs(sum(self.weights or [1]) - 1) > 1e-6, "`weights` of slerp must have the sum 1, as in [0.3,0.7]"),
            (self.density is not None and not prunes, f"`density` has no effect with `combine` {name}. Omit it"),
            (self.seed is not None and not draws, f"`seed` has no effect with `combine` {name}. Omit it"),
            *bounds(self, "density", above=0, at_most=1),
            *bounds(self, "seed", at_least=0),
        ]
