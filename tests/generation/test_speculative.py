"""Speculative decoding: the same text as without a draft where the likeliest token is taken, else the same distribution."""

import dataclasses
import shutil

import pytest
import torch
from families import BY_NAME, CASES, make_reference, random_ids
from greedy import NoText

from lit_llm.args.generate import GenerateArgs
from lit_llm.checkpoint.load_model import load_model
from lit_llm.cli import DEMO
from lit_llm.generation import answer_prompts
from lit_llm.generation.decode import Row
from lit_llm.generation.generate import generate
from lit_llm.generation.sampling import Sampling
from lit_llm.generation.speculative import continue_drafted, verify
from lit_llm.text.ending import Ending

CRITICAL = {4: 18.5, 7: 24.3, 24: 51.2}  # of chi-square by degrees of freedom, at a probability of 0.001
SOME = [c for c in CASES if c.name in ("llama", "gpt_neox", "mistral-window", "gemma3_text", "mixtral")]


def make_models(case, folder, **changes):
    """The model of a case, and drafts: itself, and itself with noise, which is often wrong."""
    make_reference(dataclasses.replace(case, **changes), folder)
    noisy = load_model(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    return load_model(folder), load_model(folder), noisy


@pytest.mark.parametrize("case", SOME, ids=str)
def test_greedy_text_is_that_of_the_model_alone(case, tmp_path):
    """Beyond the windows, in which guesses that were wrong are written over."""
    model, same, noisy = make_models(case, tmp_path)
    for n_prompt, n_new in ((3, 40), (20, 1), (1, 2), (17, 30)):
        prompt = random_ids(case, n_prompt).tolist()
        (alone,) = generate(model, NoText(), [prompt], max_new_tokens=n_new, temperature=0)
        for draft in (same, noisy):
            row = Row(NoText(), prompt, n_new, Sampling(0.0), Ending())
            assert not "".join(continue_drafted(model, draft, row))
            assert row.completion().ids == alone.ids


def test_a_draft_that_is_right_saves_passes_of_the_model(tmp_path, monkeypatch):
    model, same, noisy = make_models(SOME[0], tmp_path)
    passes = []
    for draft in (same, noisy):
        calls = []
        hidden = model.hidden
        monkeypatch.setattr(
            model, "hidden", lambda *args, hidden=hidden, calls=calls, **how: (calls.append(1), hidden(*args, **how))[1]
        )
        for _ in continue_drafted(model, draft, Row(NoText(), [5, 6, 7], 40, Sampling(0.0), Ending())):
            pass
        passes.append(len(calls))
    assert passes[0] == 8  # 4 guesses and a token of its own each time
    assert 8 < passes[1] < 40


def chi_square(counts, expected):
    return ((counts - expected) ** 2 / expected).sum().item()


def test_a_verified_token_has_the_distribution_of_the_model():
    """20,000 draws: the guess where it is kept, else what replaces it; and the token after a guess that is kept."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.rand(2, 8, generator=generator).softmax(-1), (torch.rand(8, generator=generator) * 3).softmax(-1)
    first, second = torch.zeros(8), torch.zeros(8)
    for _ in range(20_000):
        guess = int(torch.multinomial(q, 1, generator=generator))
        found = verify(p, [q], [guess], generator)
        first[found[0]] += 1
        if len(found) == 2:
            second[found[1]] += 1
    assert chi_square(first, p[0] * 20_000) < CRITICAL[7]
    assert chi_square(second, p[1] * second.sum()) < CRITICAL[7]
    assert 10_000 < second.sum() < 20_000
    assert chi_square(first, q * 20_000) > CRITICAL[7]


def test_sampled_pairs_have_the_distribution_of_the_model(tmp_path):
    """All 25 pairs of tokens of a vocabulary of 5, against the exact product of the model's probabilities."""
    case = BY_NAME["llama"]
    sizes = {**case.sizes, "num_hidden_layers": 1}
    model, _, noisy = make_models(case, tmp_path, vocab_size=5, sizes=sizes)
    prompt, counts, n = [3, 1, 4], torch.zeros(25), 3000
    for seed in range(n):
        row = Row(NoText(), prompt, 3, Sampling(0.7, seed=seed), Ending())
        for _ in continue_drafted(model, noisy, row):
            pass
        counts[row.ids[3] * 5 + row.ids[4]] += 1
    with torch.no_grad():
        first = (model(torch.tensor([prompt]))[0, -1] / 0.7).softmax(-1)
        second = (model(torch.tensor([[*prompt, i] for i in range(5)]))[:, -1] / 0.7).softmax(-1)
        wrong = (noisy(torch.tensor([prompt]))[0, -1] / 0.7).softmax(-1)
    assert chi_square(counts, (first[:, None] * second).flatten() * n) < CRITICAL[24]
    assert chi_square(counts.view(5, 5).sum(1), wrong * n) > CRITICAL[4]


def test_the_script_drafts_and_refuses_a_model_with_other_tokens(tmp_path, checkpoint, capsys):
    how = {"max_new_tokens": 40, "temperature": 0.0, "accelerator": "cpu", "prompt": "In the village"}
    outputs = []
    for draft in (None, DEMO / "checkpoint"):
        answer_prompts.continue_prompts(GenerateArgs(**how, draft_checkpoint_dir=draft))
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    with pytest.raises(ValueError, match="has other tokens"):
        answer_prompts.continue_prompts(GenerateArgs(**how, draft_checkpoint_dir=checkpoint))
    with pytest.raises(ValueError, match="cannot be combined with `logprobs`, `compile`"):
        GenerateArgs(**how, draft_checkpoint_dir=checkpoint, compile=True, logprobs=1, output_file=tmp_path / "o")


def test_models_that_turn_by_the_length_are_not_drafted(tmp_path, checkpoint):
    import json

    folder = shutil.copytree(checkpoint, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="not for RoPE of type dynamic"):
        answer_prompts.continue_prompts(
            GenerateArgs(prompt="a", checkpoint_dir=folder, draft_checkpoint_dir=checkpoint, accelerator="cpu")
        )
