"""Greedy tokens of a model, row by row."""

from lit_llm.generation.decode import Batch, Row, continue_rows
from lit_llm.generation.sampling import Sampling
from lit_llm.text.ending import Ending

N_NEW = 24


LENGTHS = [13, 1, 8, 19, 3, 9, 2, 16]


class NoText:
    """Stands where a tokenizer is needed: nothing ends a text."""

    eos_ids = frozenset()

    def decode_more(self, ids):
        return ""

    def token_bytes(self, i, before):
        return b""


def continued(model, prompts, **options):
    """New tokens of a batch of three places, which rows leave and join."""
    rows = [Row(NoText(), prompt, N_NEW, Sampling(0.0), Ending()) for prompt in prompts]
    for _ in continue_rows(Batch[Row](model, 3, 20 + N_NEW, **options), rows):
        pass
    return [row.completion().ids for row in rows]
