"""Options of the scripts that download, convert and merge checkpoints."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_llm.args.base import Checked, Rules


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

    def rules(self) -> Rules:
        part = r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?"
        parts = (self.repo_id or "").split("/")
        well_formed = len(parts) == 2 and all(re.fullmatch(part, name, re.ASCII) for name in parts)
        return [
            (
                self.repo_id is not None and not well_formed,
                f"`repo_id` takes ORG/NAME, as in EleutherAI/pythia-70m; found {self.repo_id}",
            ),
            *self.needs("repo_id", "revision", "access_token", "tokenizer_only"),
        ]


@dataclass(frozen=True)
class ConvertLitArgs(Checked):
    """Conversion to the formats of Hugging Face"""

    checkpoint_dir: Path
    """Folder of the model; with adapter_dir, the base that the adapter was trained on."""
    output_dir: Path
    """Folder to write, which must be new or empty: for transformers, or with adapter_dir for PEFT."""
    adapter_dir: Path | None = None
    """LoRA adapter to write in PEFT's format."""


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
    """Factor of each adapter; 1 for each if not given."""

    def rules(self) -> Rules:
        n = len(self.adapter_dir) if isinstance(self.adapter_dir, list) else 1
        found = 0 if self.weights is None else len(self.weights)
        return [(found not in (0, n), f"`weights` has {found} numbers for {n} adapters")]
