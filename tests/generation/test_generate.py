import pytest
import torch
from tiny import hf_model, make_checkpoint

import lit_llm
from lit_llm.checkpoint.load_model import load_model
from lit_llm.generation.generate import generate
from lit_llm.text.ending import Ending
from lit_llm.text.tokenizer import Tokenizer

FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    "gpt_neox": {},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
}


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, tmp_path_factory):
    """Folder and transformers model of a family."""
    folder = tmp_path_factory.mktemp("checkpoints") / request.param
    make_checkpoint(folder, request.param, **FAMILIES[request.param])
    return folder, hf_model(request.param, **FAMILIES[request.param])


def greedy(theirs, ids, n):
    """transformers' continuation, with no token that ends it."""
    ids = torch.tensor([ids])
    new = theirs.generate(ids, max_new_tokens=n, do_sample=False, eos_token_id=None, pad_token_id=0)
    return new[0, ids.size(1) :].tolist()


NEVER = Ending()


def test_greedy_generation_equals_transformers_for_64_tokens(models):
    folder, theirs = models
    prompt = torch.randint(2, 320, (11,), generator=torch.Generator().manual_seed(1)).tolist()
    (found,) = generate(load_model(folder), Tokenizer(folder), [prompt], max_new_tokens=64, temperature=0, ending=NEVER)
    assert found.ids == greedy(theirs, prompt, 64)


def test_a_ragged_batch_equals_each_prompt_alone(models):
    folder, theirs = models
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(2, 320, (n,), generator=generator).tolist() for n in (3, 29, 1, 12)]
    found = generate(load_model(folder), Tokenizer(folder), prompts, max_new_tokens=20, temperature=0, ending=NEVER)
    for prompt, completion in zip(prompts, found, strict=True):
        assert completion.ids == greedy(theirs, prompt, 20)


def test_cached_generation_equals_generation_without_the_cache(models):
    folder, _ = models
    model = load_model(folder)
    ids = list(range(5, 12))
    (found,) = generate(model, Tokenizer(folder), [ids], max_new_tokens=64, temperature=0, ending=NEVER)
    with torch.no_grad():
        for _ in range(64):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert found.ids == ids[7:]


def test_generation_ends_at_eos_and_leaves_it_out(checkpoint):
    model, tokenizer = lit_llm.load(checkpoint)
    (long,) = generate(model, tokenizer, ["the red cat"], max_new_tokens=30, temperature=0, ending=NEVER)
    stop = long.ids[12]
    until = Ending(frozenset([stop]))
    (found,) = generate(model, tokenizer, ["the red cat"], max_new_tokens=30, temperature=0, ending=until)
    assert found.ids == long.ids[: long.ids.index(stop)]
    assert found.ended
    assert not long.ended


def test_a_sample_repeats_with_its_seed(checkpoint):
    model, tokenizer = lit_llm.load(checkpoint)
    first, other, again = (
        generate(model, tokenizer, ["the red cat"], max_new_tokens=20, temperature=1.0, seed=seed)[0] for seed in (1, 2, 1)
    )
    assert first == again != other
    in_batch = generate(model, tokenizer, ["a dog", "the red cat"], max_new_tokens=20, temperature=1.0, seed=0)[1]
    assert in_batch == first


def test_a_prompt_beyond_the_context_is_refused(checkpoint):
    model, tokenizer = lit_llm.load(checkpoint)
    with pytest.raises(ValueError, match="exceed the context of 256"):
        generate(model, tokenizer, [[5] * 250], max_new_tokens=10)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (["a"], {"max_new_tokens": -1}, "`max_new_tokens` and `n_top` must be at least 0, found -1"),
        (["a"], {"temperature": float("nan")}, "`temperature` must be 0 or"),
        ([[]], {}, r"`prompts`\[0\] has no tokens"),
        (["a", []], {}, r"`prompts`\[1\] has no tokens"),
        ([[5, 10**6]], {}, r"`prompts`\[0\] has no tokens, or one that the model does not have"),
        ("abc", {}, "must be lists of strings, not a string"),
        (["a"], {"stop": "\n"}, "must be lists of strings, not a string"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(checkpoint, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        generate(*lit_llm.load(checkpoint), prompts, **{"max_new_tokens": 3, **options})


def test_no_prompts_have_no_completions(checkpoint):
    assert generate(*lit_llm.load(checkpoint), [], max_new_tokens=3) == []


def test_logits_that_are_not_finite_are_told(checkpoint):
    model, tokenizer = lit_llm.load(checkpoint)
    model.lm_head.weight[7] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"logits are not finite.*`precision`"):
            generate(model, tokenizer, ["a"], max_new_tokens=3, temperature=temperature)


def test_base_prints_prompt_and_continuation_and_nothing_else(checkpoint, script):
    done = script(
        "generate/base.py", "--checkpoint_dir", checkpoint, "--prompt", "the red cat", "--max_new_tokens=5", "--temperature=0"
    )
    model, tokenizer = lit_llm.load(checkpoint)
    (expected,) = generate(model, tokenizer, ["the red cat"], max_new_tokens=5, temperature=0)
    assert done.stdout == "the red cat" + expected.text + "\n"
    assert "tokens/s" in done.stderr


def test_real_stories_model_reproduces_the_published_text(shared_data, script):
    folder = shared_data / "stories260K"
    done = script("generate/base.py", "--checkpoint_dir", folder, "--prompt=", "--temperature=0", "--max_new_tokens=200")
    assert done.stdout.strip() == (folder / "expected_greedy_200.txt").read_text().strip()
