"""Continue prompts with a model."""

from collections.abc import Sequence
from dataclasses import replace

from lit_llm.errors import OptionError
from lit_llm.generation.decode import Batch, Completion, Row, continue_rows
from lit_llm.generation.sampling import Sampling
from lit_llm.model.gpt import GPT
from lit_llm.text.conversation import start_ids
from lit_llm.text.ending import Ending, raw_ending
from lit_llm.text.tokenizer import Tokenizer


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 1337,
    stop: Sequence[str] = (),
    ending: Ending | None = None,
    n_top: int | None = None,
) -> list[Completion]:
    """Complete all prompts as one batch.

    Args:
        prompts: Strings, or token ids. An empty string starts from BOS.
        temperature: 0 takes the most likely token. See `Sampling` for this and the following.
        seed: Prompt i is sampled from a random stream of its own, seeded by seed + i.
        stop: Strings that end a completion and are not part of it.
        ending: Tokens and more strings that end a completion; by default the EOS tokens.
        n_top: Score the tokens, each with this many of the most likely tokens at its place.

    Raises:
        OptionError: if a prompt has no tokens or one that does not exist, a prompt and `max_new_tokens` do not fit into the
            context, another argument makes no sense, or the model's logits are not finite.
    """
    if isinstance(prompts, str) or isinstance(stop, str):
        raise OptionError("`prompts` and `stop` must be lists of strings, not a string")
    if max_new_tokens < 0 or (n_top is not None and n_top < 0):
        raise OptionError(f"`max_new_tokens` and `n_top` must be at least 0, found {max_new_tokens} and {n_top}")
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    encoded = [encode_prompt(tokenizer, p) if isinstance(p, str) else list(p) for p in prompts]
    for n, ids in enumerate(encoded):
        if not ids or not all(0 <= i < model.config.vocab_size for i in ids):
            raise OptionError(f"`prompts`[{n}] has no tokens, or one that the model does not have")
    until = (ending or raw_ending(tokenizer)).with_strings(stop)
    return generate_batch(model, tokenizer, encoded, max_new_tokens, sampling, until, n_top)


def generate_batch(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    ending: Ending,
    n_top: int | None = None,
) -> list[Completion]:
    """Complete prompts, given as token ids, as one batch; prompt i with the seed of `sampling` plus i. See `generate`."""
    if not prompts:
        return []
    longest = max(map(len, prompts))
    check_context(model, longest, max_new_tokens)
    rows = [
        Row(tokenizer, ids, max_new_tokens, replace(sampling, seed=sampling.seed + i), ending, n_top=n_top)
        for i, ids in enumerate(prompts)
    ]
    for _ in continue_rows(Batch[Row](model, len(rows), longest + max_new_tokens), rows):
        pass
    return [row.completion() for row in rows]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    return tokenizer.encode(prompt) or start_ids(tokenizer)


def check_context(model: GPT, n_prompt: int, max_new_tokens: int) -> None:
    """Raise OptionError unless a prompt and its continuation fit into the context."""
    if n_prompt + max_new_tokens > model.config.block_size:
        raise OptionError(
            f"a prompt of {n_prompt} tokens and {max_new_tokens} new ones exceed the context of {model.config.block_size}. "
            "Shorten the prompt or lower `max_new_tokens`"
        )
