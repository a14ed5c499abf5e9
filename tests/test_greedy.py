"""Greedy generation token for token against `transformers.generate`, for every family, beyond windows and scaled contexts."""

import pytest
import torch
from families import CASES, make_reference, random_ids

from lit_llm.checkpoint import load_model
from lit_llm.generate import generate

N_NEW = 24
LENGTHS = [13, 1, 8, 19, 3, 9, 2, 16]


class NoText:
    """Stands where a tokenizer is needed: nothing ends a text."""

    eos_ids = frozenset()

    def decode(self, ids):
        return ""


def theirs(reference, prompts):
    """New tokens of transformers for prompts of different lengths, padded on the left and masked."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    reference.generation_config.eos_token_id = None
    found = reference.generate(ids, attention_mask=mask, max_new_tokens=N_NEW, do_sample=False, pad_token_id=0)
    return found[:, longest:].tolist()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_greedy_generation_equals_transformers(case, tmp_path):
    reference = make_reference(case, tmp_path)
    model = load_model(tmp_path)
    prompts = [row[:n].tolist() for row, n in zip(random_ids(case, 8, 20), LENGTHS, strict=True)]
    alone = generate(model, NoText(), prompts[:1], max_new_tokens=N_NEW, temperature=0)
    assert [c.ids for c in alone] == theirs(reference, prompts[:1])
    batch = [c.ids for c in generate(model, NoText(), prompts, max_new_tokens=N_NEW, temperature=0)]
    if case.family == "phi3":  # switches the tables of LongRoPE by the length of the padded batch, and so for short rows too
        assert batch == [theirs(reference, [prompt])[0] for prompt in prompts]
    else:
        assert batch == theirs(reference, prompts)
