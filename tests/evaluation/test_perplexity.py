import json
import math
from types import SimpleNamespace

import pytest
import torch

import lit_llm
from lit_llm.evaluation.perplexity import perplexity, windows
from lit_llm.files import json_text


@pytest.mark.parametrize(("n", "context", "stride"), [(23, 8, 8), (23, 8, 3), (8, 8, 8), (9, 8, 1), (5, 8, 8)])
def test_windows_are_those_of_the_evaluation_harness(n, context, stride):
    utils = pytest.importorskip("lm_eval.utils")
    ids = list(range(100, 100 + n))
    theirs = utils.get_rolling_token_windows(ids, 0, context, context_len=context - stride + 1)
    expected = [(a[: len(a) - len(b) + 1] + b, len(b)) for a, b in theirs]
    assert [(span.ids, span.n_scored) for span in windows([0, *ids], context, stride)] == expected


@pytest.mark.parametrize("n_chars", [60_000, pytest.param(None, marks=pytest.mark.slow)], ids=["part", "whole"])
def test_tinyshakespeare_equals_transformers(shared_data, n_chars):
    """Log-likelihood and perplexity of a trained model, window by window, by transformers."""
    from transformers import LlamaForCausalLM

    folder = shared_data / "stories260K"
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text()[:n_chars]
    model, tokenizer = lit_llm.load(folder)
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([1, *tokenizer.encode(text, bos=False)])
    total = 0.0
    for start in range(0, len(ids) - 1, 512):
        targets = ids[start + 1 : start + 513]
        begin = max(0, start + len(targets) - 512)  # the last window has a full context, too
        with torch.no_grad():
            logits = theirs(ids[None, begin : start + len(targets)]).logits[0, -len(targets) :]
        total += logits.double().log_softmax(-1).gather(1, targets[:, None]).sum().item()
    found = perplexity(model, tokenizer, text, None, 8)
    print(f"{found.tokens} tokens: {found.token_perplexity}, by transformers {math.exp(-total / found.tokens)}")
    assert found.tokens == len(ids) - 1
    assert found.token_perplexity == pytest.approx(math.exp(-total / found.tokens), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(-total / len(text.encode()) / math.log(2), rel=1e-5)


def test_perplexity_equals_the_rolling_likelihood_of_the_harness(shared_data):
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    from lit_llm.evaluation.harness import HarnessModel

    folder = shared_data / "stories260K"
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text()[:20_000]
    requests = [SimpleNamespace(args=(part,)) for part in (text, "Once upon a time", text[:1700])]
    model, tokenizer = lit_llm.load(folder)
    without_bos = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4, add_bos_token=False)
    expected = without_bos.loglikelihood_rolling(requests)
    for request, value in zip(requests, expected, strict=True):
        assert perplexity(model, tokenizer, request.args[0], None, 3).log_likelihood == pytest.approx(value, rel=1e-5)
    # The harness itself puts a second BOS before a text where the tokenizer adds one; so do we inside of it.
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)
    found = HarnessModel(model, tokenizer, folder, 4).loglikelihood_rolling(requests)
    assert found == pytest.approx(theirs.loglikelihood_rolling(requests), rel=1e-5)


def test_a_shorter_stride_scores_tokens_once_with_more_context(shared_data):
    folder = shared_data / "stories260K"
    model, tokenizer = lit_llm.load(folder)
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. " * 60
    whole, sliding = (perplexity(model, tokenizer, text, stride, 4) for stride in (None, 128))
    assert whole.tokens == sliding.tokens > 1024
    assert sliding.token_perplexity < whole.token_perplexity


def test_the_script_prints_json(script, checkpoint, tmp_path):
    (tmp_path / "text.txt").write_text("the red cat sees a dog " * 40)
    done = script("eval/perplexity.py", "--checkpoint_dir", checkpoint, "--data_file", "text.txt", "--stride", 64)
    found = json.loads(done.stdout)
    assert found["token_perplexity"] == pytest.approx(math.exp(-found["log_likelihood"] / found["tokens"]))
    done = script("eval/perplexity.py", "--checkpoint_dir", checkpoint, "--data_file", "absent.txt", check=False)
    assert done.returncode == 2
    assert "absent.txt" in done.stderr


def test_json_has_null_for_numbers_that_it_lacks():
    values = {"a": [math.nan, {"b": math.inf}], "c": 1.5, "d": "NaN"}
    assert json.loads(json_text(values), parse_constant=pytest.fail) == {"a": [None, {"b": None}], "c": 1.5, "d": "NaN"}
