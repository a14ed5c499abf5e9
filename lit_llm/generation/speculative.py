"""Speculative decoding: a small model drafts some tokens, the large one checks them in one pass (https://arxiv.org/abs/2211.17192).

The result has the distribution of tokens that the large model draws one by one; greedy decoding gives the same tokens.
K drafted tokens, V vocabulary of the large model.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llm.errors import OptionError
from lit_llm.generation.decode import Row
from lit_llm.generation.sampling import NOT_FINITE, Sampling, are_finite, distribution, draw, penalize
from lit_llm.model.gpt import GPT
from lit_llm.text.tokenizer import Tokenizer

N_DRAFTED = 4


def check_draft(model: GPT, tokenizer: Tokenizer, draft: GPT, draft_tokenizer: Tokenizer) -> None:
    """Raise OptionError if the two models have different tokens, or one of them cannot take back a token: a layer keeps a
    state, or RoPE depends on the length of the sequence.
    """
    for config in (model.config, draft.config):
        if config.keeps_state:
            raise OptionError(
                f"`draft_checkpoint_dir` is not for {config.model_type}: its layers without attention keep a state, from which "
                "rejected tokens cannot be removed. Omit it"
            )
    texts = [[t.decode([i]) for i in range(t.vocab_size)] for t in (tokenizer, draft_tokenizer)]
    if texts[0] != texts[1]:
        raise OptionError("the model of `draft_checkpoint_dir` has other tokens. Use a smaller model of the same family")
    for scaling in (model.config.rope_scaling, draft.config.rope_scaling):
        if scaling is not None and scaling["rope_type"] in ("dynamic", "longrope"):
            raise OptionError(f"`draft_checkpoint_dir` is not for RoPE of type {scaling['rope_type']}. Omit it")


@torch.inference_mode()
def continue_drafted(model: GPT, draft: GPT, row: Row) -> Iterator[str]:
    """Generate a row to its end, and yield each piece of text as it becomes certain.

    A sample differs from the one that the same seed gives without a draft.
    """
    target, drafter = (_Reader(m, row.n_prompt + row.max_new_tokens, model.config.vocab_size) for m in (model, draft))
    while not row.done:
        ids, q = list(row.ids), []
        for _ in range(min(N_DRAFTED, row.max_new_tokens - row.n_new - 1)):
            q.append(probabilities(drafter.read(ids, 1), row.sampling, [ids])[0])
            ids.append(int(draw(q[-1][None], [row.generator])))
        guesses = ids[len(row.ids) :]
        seen = [ids[: len(row.ids) + i] for i in range(len(q) + 1)]
        p = probabilities(target.read(ids, len(q) + 1), row.sampling, seen)
        for token in verify(p, q, guesses, row.generator):
            if not row.done:
                yield row.take(token)
        for reader in (target, drafter):
            reader.n_read = min(reader.n_read, len(row.ids) - 1)  # the rest, read after a wrong guess, is overwritten


def verify(p: Tensor, q: Sequence[Tensor], guesses: Sequence[int], generator: torch.Generator) -> list[int]:
    """Return the accepted guesses and one more token (algorithm 1).

    A guess x is accepted with probability min(1, p(x) / q(x)); the first rejected one is drawn again from max(p - q, 0).

    Args:
        p: Distributions of the model at the places of the guesses and the next one, (K + 1, V).
        q: Distributions that the guesses were drawn from, K times (V,).
    """
    for i, guess in enumerate(guesses):
        if torch.rand((), generator=generator).item() * q[i][guess] >= p[i, guess]:
            rest = (p[i] - q[i]).clamp(min=0)
            rest = rest if rest.sum() > 0 else p[i]  # the two are equal except for rounding
            return [*guesses[:i], int(draw(rest[None], [generator]))]
    return [*guesses, int(draw(p[-1:], [generator]))]


def probabilities(logits: Tensor, sampling: Sampling, seen: Sequence[Sequence[int]]) -> Tensor:
    """Return the distributions (n, V) at n places with logits (n, V), each after the tokens `seen`.

    Raises:
        OptionError: if the logits are not finite.
    """
    if not are_finite(logits).all():
        raise OptionError(NOT_FINITE)
    logits = penalize(logits.float(), [sampling] * len(seen), seen)
    if sampling.temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.size(-1)).float()
    return distribution(logits, sampling)


class _Reader:
    """A model and its cache of one sequence.

    Attributes:
        n_read: Tokens with valid keys and values. The caller lowers it after a rejected guess.
    """

    def __init__(self, model: GPT, max_length: int, vocab_size: int) -> None:
        self.model, self.vocab_size, self.n_read = model, vocab_size, 0
        self.cache = model.make_cache(1, max_length, chunk=N_DRAFTED + 1)

    def read(self, ids: Sequence[int], n: int) -> Tensor:
        """Read the new tokens of a sequence, and return the logits after each of its last n tokens, (n, V)."""
        known = self.model.config.vocab_size - 1  # two models of a family may be padded to different numbers of rows
        new = torch.tensor([[min(i, known) for i in ids[self.n_read :]]], device=self.model.device)
        positions = None
        if self.n_read:
            positions = torch.arange(self.n_read, len(ids), device=new.device)[None]
            self.cache.length, self.cache.level = len(ids), new.size(1) == 1
        hidden = self.model.hidden(new, cache=self.cache, positions=positions)[0, -n:]
        self.n_read = len(ids)
        logits = self.model.head(hidden)[:, : self.vocab_size]
        return F.pad(logits, (0, self.vocab_size - logits.size(-1)), value=-torch.inf)
