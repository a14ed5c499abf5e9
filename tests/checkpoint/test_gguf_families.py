"""GGUF files of every architecture: written by us, read by us, by transformers and by llama.cpp."""

import pytest
import torch
from families import make_reference, random_ids, relative_difference
from gguf_cases import GGUF_CASES, vocabulary_of

from lit_llm.checkpoint.gguf_proof import LlamaCpp, compare
from lit_llm.checkpoint.gguf_write import write_model
from lit_llm.checkpoint.load_model import load_model

pytest.importorskip("gguf")

IDS = [f"{case}-{i}" for i, (case, _) in enumerate(GGUF_CASES)]
# llama.cpp looks GELU up in a table of float16.
TABULATED = ("gemma", "gemma2", "gemma3_text", "phi", "gpt_neox", "falcon", "gpt2", "gpt_bigcode", "starcoder2")


@pytest.fixture(scope="module", params=GGUF_CASES, ids=IDS)
def written(request, tmp_path_factory):
    """The case, whether transformers reads it, the model, and its file."""
    (case, in_transformers), folder = request.param, tmp_path_factory.mktemp("gguf")
    reference = make_reference(case, folder)
    model = load_model(folder).eval()
    path = folder / "model-F32.gguf"
    write_model(path, model, "f32", vocabulary_of(case.vocab_size))
    return case, in_transformers, reference, model, path


def test_a_written_file_is_read_back_bit_by_bit(written):
    _, _, _, model, path = written
    again = load_model(path).eval()
    for name, value in model.config.to_dict().items():
        if name not in ("model_type", "rope_scaling"):  # Mistral is llama in GGUF; lists of RoPE are in float32
            assert again.config.to_dict()[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name
    for name, tensor in again.state_dict().items():
        expected = model.state_dict()[name]
        if model.config.norm == "rms_plus_one" and "norm" in name:  # GGUF has them plus one
            expected = expected + 1 - 1
        assert torch.equal(tensor, expected), name


@torch.inference_mode()
def test_logits_of_a_file_equal_those_of_the_folder(written):
    case, _, reference, _, path = written
    ids = random_ids(case, 1, 24)
    assert relative_difference(load_model(path).eval()(ids), reference(ids).logits) < 1e-5


@torch.inference_mode()
def test_transformers_reads_the_same_model(written):
    from transformers import AutoModelForCausalLM

    case, in_transformers, reference, _, path = written
    if not in_transformers:
        pytest.skip("transformers does not read this architecture, or not all of its metadata")
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    ids = random_ids(case, 1, 24)
    assert relative_difference(theirs(ids).logits, reference(ids).logits) < 1e-5


def test_llama_cpp_computes_the_same_model(written):
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
    case, _, _, model, path = written
    prompt = random_ids(case, 1, 8)[0].tolist()
    llama = LlamaCpp(path, context=64)
    steps, _ = llama.continuation(prompt, 16, n_probs=case.vocab_size)
    llama.close()
    _, same, largest = torch.stack(compare(model, prompt, steps)).unbind(1)
    assert len(steps) > 1
    assert largest.max() < (2e-2 if case.family in TABULATED else 1e-4)
    assert same.mean() > (0.8 if case.family in TABULATED else 0.99)
