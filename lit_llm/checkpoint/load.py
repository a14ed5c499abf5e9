"""Load a model and its tokenizer from a checkpoint folder."""

from collections.abc import Sequence
from pathlib import Path

from lit_llm.checkpoint.adapters import attach_adapter, trained_template_kwargs
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.prequantized import stored_quantization
from lit_llm.errors import CheckpointError
from lit_llm.model.config import Config
from lit_llm.model.cpu_linear import Layout, lay_out
from lit_llm.model.device import resolve_device, weights_dtype
from lit_llm.model.gpt import GPT
from lit_llm.text.tokenizer import Tokenizer


def load(
    checkpoint_dir: Path | str,
    adapter_dir: Path | str | None = None,
    device: str | Sequence[str] = "auto",
    precision: str | None = None,
    quantize: str | None = None,
    mapped: bool = False,
    layout: Layout | None = None,
    dequantize: bool = False,
) -> tuple[GPT, Tokenizer]:
    """Return a model in eval mode, with frozen weights, and its tokenizer.

    Args:
        checkpoint_dir: A folder as Hugging Face publishes it, or one of ours.
        adapter_dir: An adapter trained on this checkpoint; it stays unmerged.
        device: `auto` selects CUDA, else MPS, else the CPU. A sequence, `["cuda:0", "cuda:1"]`, spreads the blocks.
        precision: `32-true`, `16-true` or `bf16-true`. None: the checkpoint's dtype on an accelerator; float32 on a CPU,
            where bfloat16 is slow without units for it and would make results depend on the CPU's model.
        quantize: One of `lit_llm.model.quantized_linear.QUANTIZATIONS`; applies to the linears inside the blocks. None: as
            stored, where the folder has bits that such a linear holds.
        mapped: Keep the weights on the CPU, in the mapped file if possible, in the dtype that they would have on `device`.
        layout: How linears are laid out for decoding on a CPU in float32.
        dequantize: Hold plain weights, also if the folder stores them quantized.

    Raises:
        FileNotFoundError: if files are missing.
        ValueError: if they do not fit together; the message names the file or tensor.
    """
    checkpoint_dir = Path(checkpoint_dir)
    devices = [resolve_device(name) for name in ([device] if isinstance(device, str) else device)]
    dtype = weights_dtype(precision, devices[0])
    if quantize is None and not dequantize and not mapped and layout in (None, "columns"):  # the others need plain weights
        quantize = stored_quantization(checkpoint_dir)
    at_once = layout if adapter_dir is None else None  # an adapter attaches to plain linears
    model = load_model(checkpoint_dir, "cpu" if mapped else devices, dtype, quantize, layout=at_once)
    tokenizer = load_tokenizer(checkpoint_dir, model.config)
    tokenizer.template_kwargs = trained_template_kwargs(checkpoint_dir if adapter_dir is None else Path(adapter_dir))
    if adapter_dir is not None:
        attach_adapter(model, Path(adapter_dir))
        if layout is not None:
            lay_out(model, layout)
    return model.eval(), tokenizer


def load_tokenizer(checkpoint_dir: Path, config: Config) -> Tokenizer:
    """Return the tokenizer of a folder. Raises CheckpointError if it has more ids than the embedding has rows."""
    tokenizer = Tokenizer(checkpoint_dir)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer in {checkpoint_dir} has {tokenizer.vocab_size} ids but the model only {config.vocab_size} rows: "
            "they do not belong together. Copy the tokenizer files of the model's own checkpoint"
        )
    return tokenizer
