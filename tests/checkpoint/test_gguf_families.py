"""GGUF files of every architecture: written by us, read by us, by transformers and by llama.cpp."""

import pytest
import torch
import torch.nn.functional as F
from families import make_reference, random_ids, relative_difference
from gguf_cases import GGUF_CASES, vocabulary_of

from lit_llm.checkpoint.gguf_proof import LlamaCpp, compare
from lit_llm.checkpoint.gguf_write import write_model
from lit_llm.checkpoint.load_model import load_model
from lit_llm.model.gpt import ACTIVATIONS

pytest.importorskip("gguf")

IDS = [f"{case}-{i}" for i, (case, _) in enumerate(GGUF_CASES)]


def gelu_of_llama_cpp(x: torch.Tensor) -> torch.Tensor:
    """The tanh approximation, for both kinds of GELU, from a table with a float16 result for each float16 argument
    (ggml/src/ggml-cpu/vec.h, ggml_vec_gelu_f32)."""
    inside = F.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, inside))


@pytest.fixture(scope="module", params=GGUF_CASES, ids=IDS)
def written(request, tmp_path_factory):
    """The case, why transformers does not read it or None, the model, and its file."""
    (case, unread), folder = request.param, tmp_path_factory.mktemp("gguf")
    reference = make_reference(case, folder)
    model = load_model(folder).eval()
    path = folder / "model-F32.gguf"
    write_model(path, model, "f32", vocabulary_of(case.vocab_size))
    return case, unread, reference, model, path


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

    case, unread, reference, _, path = written
    if unread is not None:
        pytest.skip(unread)
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    ids = random_ids(case, 1, 24)
    assert relative_difference(theirs(ids).logits, reference(ids).logits) < 1e-5


def test_llama_cpp_computes_the_same_model(written, monkeypatch):
    """With llama.cpp's GELU in our model, only the table is left: an argument that differs by 1e-7 may be rounded to the next
    entry, which is 5e-4 of it away. With the exact GELU, log-likelihoods differ by up to 1.2e-2."""
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
    case, _, _, model, path = written
    has_table = model.config.activation.startswith("gelu")
    if has_table:
        monkeypatch.setitem(ACTIVATIONS, model.config.activation, gelu_of_llama_cpp)
        model = load_model(path).eval()
    prompt = random_ids(case, 1, 8)[0].tolist()
    llama = LlamaCpp(path, context=64)
    steps = llama.continuation(prompt, 16, n_probs=case.vocab_size)
    llama.close()
    _, same, largest = torch.stack(compare(model, prompt, steps)).unbind(1)
    assert len(steps) > 1
    assert largest.max() < (2e-3 if has_table else 1e-4)
    assert same.all()
