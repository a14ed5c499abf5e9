"""Export to GGUF: merged models, and LoRA adapters, each with a Modelfile and a proof by llama.cpp."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.args.checkpoint import GGUFType
from lit_llm.checkpoint.adapters import Adapter, attach_adapter, trained_style
from lit_llm.checkpoint.gguf_config import architecture_of, representable
from lit_llm.checkpoint.gguf_names import gguf_names, to_gguf_layout
from lit_llm.checkpoint.gguf_proof import N_LINES, UNPROVEN, LlamaCpp, Proof, is_installed, other_prompts, prove, table
from lit_llm.checkpoint.gguf_write import write_adapter, write_model
from lit_llm.checkpoint.load import load_tokenizer
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.merge import lora_updates, merge_attached
from lit_llm.checkpoint.read import read_config
from lit_llm.checkpoint.tables.rows import Fused, names_of
from lit_llm.checkpoint.upstream_linears import LowRank, upstream_linear
from lit_llm.errors import CheckpointError
from lit_llm.files import unused_folder
from lit_llm.model.config import Config
from lit_llm.model.gpt import GPT
from lit_llm.text.conversation import CHAT_TEMPLATE, default_style
from lit_llm.text.ending import Ending, ending
from lit_llm.text.gguf_file import SUFFIX, check_installed
from lit_llm.text.gguf_vocabulary import vocabulary
from lit_llm.text.modelfile import modelfile
from lit_llm.text.style_template import jinja_template
from lit_llm.text.styles import STYLES
from lit_llm.text.tokenizer import Tokenizer

REPORT = "report.md"


def export_gguf(
    checkpoint_dir: Path | str,
    output_dir: Path | str,
    kinds: Sequence[GGUFType] = ("f16",),
    adapter_dir: Path | str | None = None,
    n_lines: int = N_LINES,
) -> list[Proof]:
    """Write a model, with a LoRA adapter merged into it, as a GGUF file of each type, with a Modelfile for the first.

    The model is held in float32. If llama.cpp is installed, it reads each file and is compared with the model.

    Returns:
        The figures of the comparison, which are also in `report.md`; empty without llama.cpp.

    Raises:
        CheckpointError: if GGUF or llama.cpp cannot compute the model, or the comparison fails; nothing is written then.
        ValueError: if `output_dir` is in use (`unused_folder`).
    """
    checkpoint_dir, adapter = Path(checkpoint_dir), None if adapter_dir is None else Path(adapter_dir)
    check_installed("`format` gguf")
    with unused_folder(Path(output_dir), "output_dir", [checkpoint_dir, *([adapter] if adapter else [])]) as folder:
        model = load_model(checkpoint_dir, dtype=torch.float32)
        tokenizer = load_tokenizer(checkpoint_dir, model.config)
        if adapter is not None:
            _check_lora(adapter, model.config)
            attach_adapter(model, adapter)
            merge_attached(model)
        model.eval()
        style, end = _style(checkpoint_dir, adapter, tokenizer, model.config.vocab_size)
        name = checkpoint_dir.name.removesuffix(SUFFIX)
        keys = _metadata(checkpoint_dir, tokenizer, style, end, model.config.vocab_size) | {"general.name": name}
        paths: dict[GGUFType, Path] = {kind: folder / f"{name}-{kind.upper()}{SUFFIX}" for kind in kinds}
        for kind, path in paths.items():
            write_model(path, model, kind, keys)
        (folder / "Modelfile").write_text(modelfile(f"./{paths[kinds[0]].name}", style, tokenizer, end))
        proofs = []
        for kind, path in paths.items() if is_installed() else ():
            with _asked(path) as llama:
                proofs.append(prove(llama, path, kind, model, tokenizer, style, end, n_lines))
        (folder / REPORT).write_text(_report(proofs, model.config))
    return proofs


def export_gguf_adapter(
    checkpoint_dir: Path | str, adapter_dir: Path | str, output_dir: Path | str, n_lines: int = N_LINES
) -> list[Proof]:
    """Write a LoRA as a GGUF adapter, with a Modelfile that puts it on its base.

    If llama.cpp is installed, it reads the adapter over the base in float32, and is compared with the adapted model.

    Raises:
        CheckpointError: if the adapter is not LoRA's, or llama.cpp cannot apply it, or the comparison fails; nothing is
            written then.
        ValueError: if `output_dir` is in use (`unused_folder`).
    """
    checkpoint_dir, adapter_dir = Path(checkpoint_dir), Path(adapter_dir)
    check_installed("`format` gguf")
    _check_lora(adapter_dir, read_config(checkpoint_dir))
    with unused_folder(Path(output_dir), "output_dir", [checkpoint_dir, adapter_dir]) as folder:
        model = load_model(checkpoint_dir, dtype=torch.float32).eval()
        tokenizer = load_tokenizer(checkpoint_dir, model.config)
        style, end = _style(checkpoint_dir, adapter_dir, tokenizer, model.config.vocab_size)
        base, path = folder / f"base{SUFFIX}", folder / f"adapter{SUFFIX}"
        if is_installed():
            keys = _metadata(checkpoint_dir, tokenizer, style, end, model.config.vocab_size)
            write_model(base, model, "f32", keys)
        attach_adapter(model, adapter_dir)
        write_adapter(path, architecture_of(model.config), _lora_tensors(model.eval()))
        proofs = []
        if is_installed():
            with _asked(base, path) as llama:
                proofs.append(prove(llama, path, "f32", model, tokenizer, style, end, n_lines))
            base.unlink()
        source = str(checkpoint_dir.resolve()) if checkpoint_dir.suffix == SUFFIX else "BASE.gguf"
        (folder / "Modelfile").write_text(modelfile(source, style, tokenizer, end, f"./{path.name}"))
        (folder / REPORT).write_text(_report(proofs, model.config))
    return proofs


@contextmanager
def _asked(path: Path, adapter: Path | None = None) -> Iterator[LlamaCpp]:
    llama = LlamaCpp(path, adapter)
    try:
        yield llama
    finally:
        llama.close()


def _check_lora(adapter_dir: Path, config: Config) -> None:
    about = Adapter(adapter_dir, config).about
    if about["method"] != "lora":
        raise CheckpointError(f"{adapter_dir} is an {about['method']} adapter, which GGUF cannot hold. Only LoRA can")


def _style(checkpoint_dir: Path, adapter_dir: Path | None, tokenizer: Tokenizer, n_rows: int) -> tuple[str, Ending]:
    """Return the prompt style of the adapter, else of the checkpoint, and what ends an answer in it. Some folders name an end
    beyond the embedding, which no model predicts and llama.cpp refuses.
    """
    style = trained_style(adapter_dir or checkpoint_dir)
    if style is None:
        style = default_style(tokenizer, is_text=tokenizer.chat_template is None)
    end = ending(style, tokenizer)
    return style, Ending(frozenset(i for i in end.ids if i < n_rows), end.strings)


def _metadata(checkpoint_dir: Path, tokenizer: Tokenizer, style: str, end: Ending, n_rows: int) -> dict[str, Any]:
    """Return the metadata of the tokenizer, with the prompt style as its chat template."""
    keys = vocabulary(checkpoint_dir, tokenizer, n_rows)
    template = tokenizer.chat_template
    if style != CHAT_TEMPLATE:
        tokens = tokenizer.special_tokens
        template = jinja_template(STYLES[style], tokens.get("bos_token", ""), tokens.get("eos_token", ""))
    names = ("eot", "eom")
    others = sorted(end.ids - {tokenizer.eos_id})
    ids = {f"tokenizer.ggml.{name}_token_id": i for name, i in zip(names, others, strict=False)}
    return keys | ids | ({} if template is None else {"tokenizer.chat_template": template})


def _lora_tensors(model: GPT) -> dict[str, Tensor]:
    """Return A and B of each linear that the adapter changes, by the names of GGUF; the scale is in B."""
    arch, updates = architecture_of(model.config), lora_updates(model)
    config = representable(model.config, arch)
    if any(update.magnitude is not None for update in updates.values()):
        raise CheckpointError("the adapter is of DoRA, which GGUF cannot hold. Merge it: omit `adapter_only`")
    if model.config.tie_embeddings and "lm_head" in updates:
        raise CheckpointError("the adapter changes a head that is tied to the embedding, which llama.cpp cannot apply")
    if any(".experts." in name for name in updates):
        raise CheckpointError("the adapter changes experts, which GGUF holds as one tensor. Merge it: omit `adapter_only`")
    tensors: dict[str, Tensor] = {}
    for module, entry in (gguf_names(model.config, arch).table or {}).items():
        for layer in map(str, range(config.n_layer)) if "{}" in module else ("",):
            parts = [name.format(layer, 0) for name in names_of(entry)]
            if any(part in updates for part in parts):
                name = f"{module.format(layer)}.weight"
                changed = {part: updates[part] for part in parts if part in updates}
                factors = {part: LowRank(u.A.detach(), u.B.detach() * u.scale) for part, u in changed.items()}
                assert isinstance(entry, str | Fused)
                joined = upstream_linear(model, module, entry, parts).join_updates(model.config, factors, {})
                tensors |= {f"{name}.lora_a": joined.A, f"{name}.lora_b": to_gguf_layout(joined.B, name, config, arch)}
    return tensors


def _report(proofs: Sequence[Proof], config: Config) -> str:
    compared = f"llama.cpp against the model in float32:\n\n{table(proofs)}" if proofs else f"{UNPROVEN}\n"
    if other := other_prompts(proofs):
        print(other, file=sys.stderr)
        compared += f"\n{other}\n"
    size = representable(config, architecture_of(config)).block_size
    if size == config.block_size:
        return compared
    cut = f"The context is {size} tokens, not {config.block_size}: llama.cpp has no sliding window for {config.model_type}."
    return f"{compared}\n{cut}\n"
