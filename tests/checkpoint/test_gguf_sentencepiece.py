"""SentencePiece vocabularies to GGUF and back: llama.cpp splits each line alike, and so does the tokenizer of the file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import hf_model

from lit_llm.checkpoint import gguf_proof
from lit_llm.checkpoint.gguf_export import export_gguf
from lit_llm.checkpoint.gguf_proof import LlamaCpp, sample_lines
from lit_llm.text.tokenizer import Tokenizer

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")

N_LINES = 500
TEMPLATE = """{% for turn in messages %}{{ '<|' + turn.role + '|>\n' + turn.content + eos_token + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""


def base_of(folder: Path, source: Path, vocabulary: str, **changes: Any) -> Path:
    """A random model with a published vocabulary. Returns its folder."""
    hf_model(vocab_size=32000, hidden_size=16, num_hidden_layers=1).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    for file in (vocabulary, "special_tokens_map.json"):
        shutil.copy(source / file, folder)
    config = json.loads((source / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.fixture
def few_answers(monkeypatch):
    monkeypatch.setattr(gguf_proof, "ENDING_QUESTIONS", gguf_proof.QUESTIONS)
    monkeypatch.setattr(gguf_proof, "_N_TOKENS", 2)
    monkeypatch.setattr(gguf_proof, "_N_LONGEST", 2)


@pytest.mark.parametrize("vocabulary", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("name", ["tokenizer_llama2_hf", "tokenizer_mistral_hf"])
def test_published_vocabularies_go_to_gguf_and_back(shared_data, name, vocabulary, tmp_path, few_answers):
    base = base_of(tmp_path / "base", shared_data / name, vocabulary)
    export_gguf(base, tmp_path / "out", ["f32"], n_lines=N_LINES)
    theirs, ours = Tokenizer(base), Tokenizer(tmp_path / "out/base-F32.gguf")
    for line in [*sample_lines(theirs, N_LINES), "", " ", "  two  spaces ", "\n\n\ttab", "🙂 日本語"]:
        assert ours.encode(line) == theirs.encode(line)
        assert ours.decode(ours.encode(line)) == theirs.decode(theirs.encode(line))
    llama = LlamaCpp(tmp_path / "out/base-F32.gguf")  # alone knows how the file is meant: with a space behind a special token
    for line in ("a</s> b</s>\n", "[INST] x </s>[/INST]", "</s>", "a<s> </s>", " </s>c"):
        assert ours.encode(line) == llama.encode(line)
    llama.close()
    assert (ours.bos_id, ours.eos_ids, ours.adds_bos) == (theirs.bos_id, theirs.eos_ids, theirs.adds_bos)


@pytest.mark.parametrize("legacy", [True, False])
def test_prompts_that_llama_cpp_makes_otherwise_are_counted(shared_data, legacy, tmp_path, few_answers, capsys):
    """It always puts a space behind a special token; transformers does with `legacy`, as the vocabulary of Mistral has it."""
    base = base_of(
        tmp_path / "base", shared_data / "tokenizer_mistral_hf", "tokenizer.model", legacy=legacy, chat_template=TEMPLATE
    )
    (proof,) = export_gguf(base, tmp_path / "out", ["f32"], n_lines=N_LINES)
    assert proof.n_prompts == (16 if legacy else 0)
    report = (tmp_path / "out/report.md").read_text()
    assert ("llama.cpp makes another prompt of 16 of 16 questions" in report) is not legacy
    assert ("llama.cpp makes another prompt of 16 of 16 questions" in capsys.readouterr().err) is not legacy


def test_a_real_model_of_stories_goes_to_gguf_and_back(shared_data, tmp_path):
    """Its vocabulary of 512 pieces is one of bytes for most text."""
    (proof,) = export_gguf(shared_data / "stories260K", tmp_path / "out", ["f32"], n_lines=N_LINES)
    assert proof.kl < 1e-6
    assert proof.top1 == 1
