"""Perplexity of a text. Windows slide over it and score each token once."""

import math
import re
from dataclasses import asdict, dataclass

from lit_llm.args.evaluate import PerplexityArgs
from lit_llm.errors import CheckpointError, DataError, OptionError
from lit_llm.evaluation.score import Span, score
from lit_llm.files import json_text, read_text
from lit_llm.generation.load_from_options import load_args
from lit_llm.model.gpt import GPT
from lit_llm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a text per token, word and byte."""

    tokens: int
    words: int
    """Separated by white space, as the evaluation harness counts them."""
    bytes: int
    log_likelihood: float
    """Sum over the whole text, in nats."""
    token_perplexity: float
    word_perplexity: float
    """exp of the mean loss per word; comparable between tokenizers."""
    byte_perplexity: float
    bits_per_byte: float
    context: int
    stride: int


def perplexity(model: GPT, tokenizer: Tokenizer, text: str, stride: int | None, batch_size: int) -> Perplexity:
    """Return the perplexity of `text` after a BOS, or an EOS if there is no BOS.

    Raises:
        LitError: if the text is empty, the stride exceeds the context, the tokenizer has neither token, or a score is NaN.
    """
    context = model.config.block_size
    stride = context if stride is None else stride
    if stride > context:
        raise OptionError(f"`stride` {stride} exceeds the context of {context}")
    first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if first is None:
        raise CheckpointError("the tokenizer has neither BOS nor EOS to precede the text")
    ids = tokenizer.encode(text, bos=False)
    if not ids:
        raise DataError("the text is empty")
    scores = score(model, windows([first, *ids], context, stride), batch_size, "windows")
    total = math.fsum(p for s in scores for p in s.log_probs)
    if not math.isfinite(total):
        raise CheckpointError("the model computes NaN or infinite probabilities. Use `precision` bf16-true or 32-true")
    words, n_bytes = len(re.split(r"\s+", text)), len(text.encode())
    per_token, per_word, per_byte = (_exp(-total / n) for n in (len(ids), words, n_bytes))
    bits = -total / n_bytes / math.log(2)
    return Perplexity(len(ids), words, n_bytes, total, per_token, per_word, per_byte, bits, context, stride)


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:  # a word has many tokens, and each costs an untrained model 10 nats
        return math.inf


def windows(ids: list[int], context: int, stride: int) -> list[Span]:
    """Return spans that score each of `ids` except the first once: `context` tokens, then `stride` tokens each."""
    spans, scored = [], 1
    while scored < len(ids):
        end = min(scored + (context if scored == 1 else stride), len(ids))
        spans.append(Span(ids[max(0, end - context - 1) : end], end - scored))
        scored = end
    return spans


def evaluate_file(args: PerplexityArgs) -> None:
    """Print the perplexity of a file as JSON."""
    text = read_text(args.data_file, DataError)
    model, tokenizer, _ = load_args(args)
    found = asdict(perplexity(model, tokenizer, text, args.stride, args.batch_size))
    print(json_text(found, indent=2))
