"""Export to GGUF: adapters, the proof by llama.cpp and how it fails, and models that cannot be written."""

import json

import pytest
import torch
from methods import randomize
from tiny import hf_model, make_checkpoint
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models, pre_tokenizers

from lit_llm.checkpoint import gguf_export, gguf_proof, gguf_write
from lit_llm.checkpoint.adapters import write_adapter
from lit_llm.checkpoint.gguf_export import export_gguf, export_gguf_adapter
from lit_llm.checkpoint.gguf_tensors import read_tensor
from lit_llm.checkpoint.load import load
from lit_llm.checkpoint.load_model import load_model
from lit_llm.errors import CheckpointError, OptionError
from lit_llm.methods.ia3 import IA3
from lit_llm.methods.lora import LoRA
from lit_llm.text.gguf_file import read_gguf

gguf = pytest.importorskip("gguf")

N_LINES = 20
_MIXTRAL = {"model_type": "mixtral", "num_local_experts": 2, "num_key_value_heads": 2}
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}


@pytest.fixture(autouse=True)
def few_answers(monkeypatch):
    """The proof asks 3 questions, not 100."""
    monkeypatch.setattr(gguf_proof, "QUESTIONS", gguf_proof.QUESTIONS[:3])
    monkeypatch.setattr(gguf_proof, "ENDING_QUESTIONS", gguf_proof.QUESTIONS[:3])


@pytest.fixture
def llama_cpp():
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("export") / "base", **SIZES)


def adapter_of(base, folder, method):
    """An adapter that changes the model much."""
    model = load_model(base)
    method.attach(model)
    torch.manual_seed(0)
    randomize(model)
    folder.mkdir()
    write_adapter(folder, model, method, base, "alpaca")
    return folder


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("llama", {"num_key_value_heads": 2}),
        ("mistral", {"num_key_value_heads": 2, "sliding_window": 512}),
        ("gpt_neox", {}),
        ("phi3", {"num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": [1, 32000]}),
        ("qwen2", {"num_key_value_heads": 2}),
    ],
)
def test_llama_cpp_applies_the_adapter(llama_cpp, model_type, sizes, tmp_path):
    """Permuted rows of q and k, and linears that GGUF holds in one."""
    base = make_checkpoint(tmp_path / "base", model_type, **SIZES, **sizes)
    adapter = adapter_of(base, tmp_path / "adapter", LoRA(targets="all-linear"))
    (proof,) = export_gguf_adapter(base, adapter, tmp_path / "out", N_LINES)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter.gguf", "Modelfile", "report.md"}
    assert proof.kl < 1e-5
    assert proof.top1 == 1
    (merged,) = export_gguf(base, tmp_path / "merged", ["f32"], adapter, N_LINES)
    assert merged.kl < 1e-5


def test_each_type_is_a_file_and_a_row_of_the_report(llama_cpp, base, tmp_path):
    kinds = ["f16", "bf16", "q8_0", "q4_0"]
    proofs = export_gguf(base, tmp_path / "out", kinds, n_lines=N_LINES)
    assert [path.name for path in sorted((tmp_path / "out").glob("*.gguf"))] == [
        "base-BF16.gguf", "base-F16.gguf", "base-Q4_0.gguf", "base-Q8_0.gguf",
    ]  # fmt: skip
    assert [proof.kind for proof in proofs] == kinds
    f16, bf16, q8, q4 = (proof.kl for proof in proofs)
    assert f16 < bf16 < q4
    assert f16 < q8 < q4
    report = (tmp_path / "out/report.md").read_text()
    assert [line.split()[1] for line in report.splitlines() if line.startswith("| ")][1:] == kinds
    assert "FROM ./base-F16.gguf" in (tmp_path / "out/Modelfile").read_text()


def test_rows_that_blocks_cannot_hold_are_in_float16(tmp_path):
    base = make_checkpoint(tmp_path / "base", **{**SIZES, "intermediate_size": 80})
    export_gguf(base, tmp_path / "out", ["q8_0"], n_lines=N_LINES)
    tensors = read_gguf(tmp_path / "out/base-Q8_0.gguf").tensors
    types = {name: gguf.GGMLQuantizationType(tensors[f"blk.0.{name}.weight"].type).name for name in ("ffn_down", "ffn_up")}
    assert types == {"ffn_down": "F16", "ffn_up": "Q8_0"}


def test_a_context_cut_to_the_window_is_said_in_one_line(tmp_path):
    """Beyond the window the model would differ from llama.cpp, which is asked within it."""
    base = make_checkpoint(tmp_path / "base", "mistral", sliding_window=48, num_key_value_heads=2, **SIZES)
    proofs = export_gguf(base, tmp_path / "out", ["f32"], n_lines=N_LINES)
    last = (tmp_path / "out/report.md").read_text().splitlines()[-1]
    assert last == "The context is 48 tokens, not 256: llama.cpp has no sliding window for mistral."
    assert read_gguf(tmp_path / "out/base-F32.gguf").metadata["llama.context_length"] == 48
    assert all(proof.kl < 1e-5 for proof in proofs)
    export_gguf(make_checkpoint(tmp_path / "unwindowed", **SIZES), tmp_path / "out2", ["f32"], n_lines=N_LINES)
    assert "context" not in (tmp_path / "out2/report.md").read_text()


def test_the_proof_finds_other_token_ids(llama_cpp, base, tmp_path, monkeypatch):
    real = gguf_export.vocabulary
    monkeypatch.setattr(gguf_export, "vocabulary", lambda *args: real(*args) | {"tokenizer.ggml.add_bos_token": False})
    with pytest.raises(CheckpointError, match=r"llama.cpp encodes '.*' as \[.*\], the model's tokenizer as \[0, "):
        export_gguf(base, tmp_path / "out", ["f32"], n_lines=N_LINES)
    assert not (tmp_path / "out").exists()


def test_the_proof_finds_weights_in_another_order(llama_cpp, base, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_write, "to_gguf_layout", lambda tensor, *_: tensor)
    with pytest.raises(CheckpointError, match=r"differs from the model by .* nats per token, where f32 allows 0.001"):
        export_gguf(base, tmp_path / "out", ["f32"], n_lines=N_LINES)
    assert not (tmp_path / "out").exists()


def test_the_proof_finds_an_end_that_ends_nothing(llama_cpp, base, tmp_path, monkeypatch):
    real = gguf_export._metadata  # the second end of this base is a word
    changed = {"tokenizer.ggml.eot_token_id": 5}
    monkeypatch.setattr(gguf_export, "_metadata", lambda *args: real(*args) | changed)
    with pytest.raises(CheckpointError, match=r"does not end an answer at '.*', token 2"):
        export_gguf(base, tmp_path / "out", ["f32"], n_lines=N_LINES)
    assert not (tmp_path / "out").exists()


def test_without_llama_cpp_the_report_says_so(base, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_export, "is_installed", lambda: False)
    assert export_gguf(base, tmp_path / "out", ["f16"]) == []
    assert (tmp_path / "out/report.md").read_text().startswith("not proved: llama.cpp is not installed")


@pytest.mark.parametrize(
    ("method", "sizes", "message"),
    [
        (IA3(), {}, "is an ia3 adapter, which GGUF cannot hold. Only LoRA can"),
        (LoRA(use_dora=True), {}, "is of DoRA, which GGUF cannot hold. Merge it: omit `adapter_only`"),
        (LoRA(targets="q,head"), {"tie_word_embeddings": True}, "changes a head that is tied to the embedding"),
        (LoRA(targets="all-linear"), _MIXTRAL, "changes experts, which GGUF holds as one tensor. Merge it"),
    ],
    ids=["ia3", "dora", "tied-head", "experts"],
)  # fmt: skip
def test_an_adapter_that_gguf_cannot_hold_is_refused(method, sizes, message, tmp_path):
    base = make_checkpoint(tmp_path / "base", **SIZES | sizes)
    adapter = adapter_of(base, tmp_path / "adapter", method)
    with pytest.raises(CheckpointError, match=message):
        export_gguf_adapter(base, adapter, tmp_path / "out", N_LINES)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model_type", "sizes", "message"),
    [
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, "models of type opt cannot be written as GGUF"),
        ("gemma2", {"query_pre_attn_scalar": 24, "head_dim": 16}, "GGUF cannot hold this model: its architecture gemma2 means"),
        ("stablelm", {"qk_layernorm": True, "num_key_value_heads": 4}, "stablelm of GGUF has no place for the weights"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "RoPE of type dynamic"),
    ],
)
def test_a_model_that_llama_cpp_computes_otherwise_is_refused(model_type, sizes, message, tmp_path):
    base = make_checkpoint(tmp_path / "base", model_type, **sizes)
    with pytest.raises(CheckpointError, match=message):
        export_gguf(base, tmp_path / "out", ["f32"], n_lines=N_LINES)
    assert not (tmp_path / "out").exists()


def replaced_pipeline(folder, change):
    pipeline = HFTokenizer.from_file(str(folder / "tokenizer.json"))
    change(pipeline)
    pipeline.save(str(folder / "tokenizer.json"))


def as_word_level(pipeline):
    pipeline.model = models.WordLevel(pipeline.get_vocab(), unk_token="<s>")


def split_at_punctuation(pipeline):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pipeline.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), byte_level])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_word_level, r"tokenizer in .* is of type WordLevel: llama.cpp cannot compute it"),
        (split_at_punctuation, r"splits text in a way that is none of these of llama.cpp: gpt-2, olmo"),
    ],
)
def test_a_tokenizer_that_llama_cpp_lacks_is_refused(change, message, tmp_path):
    base = make_checkpoint(tmp_path / "base", **SIZES)
    replaced_pipeline(base, change)
    with pytest.raises(CheckpointError, match=message):
        export_gguf(base, tmp_path / "out", ["f32"], n_lines=N_LINES)
    assert not (tmp_path / "out").exists()


def test_values_beyond_float16_are_refused(tmp_path):
    model = hf_model(**SIZES)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e5
    model.model.layers[0].mlp.down_proj.weight.data[:, 0] = 0  # rounding of the large value is not seen
    base = make_checkpoint(tmp_path / "base", **SIZES)
    model.save_pretrained(base)
    with pytest.raises(CheckpointError, match=r"tensor blk.0.ffn_up.weight has values up to 1e\+05, .* Use `gguf_type` bf16"):
        export_gguf(base, tmp_path / "out", ["f16"], n_lines=N_LINES)
    assert not (tmp_path / "out").exists()
    export_gguf(base, tmp_path / "out", ["bf16"], n_lines=N_LINES)
    info = read_gguf(tmp_path / "out/base-BF16.gguf").tensors["blk.0.ffn_up.weight"]
    assert read_tensor("blk.0.ffn_up.weight", info)[0, 0] == torch.tensor(1e5).bfloat16()


def test_a_folder_in_use_is_refused(base, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"`output_dir` .* already holds files"):
        export_gguf(base, tmp_path / "out", ["f16"])
    with pytest.raises(OptionError, match=r"`output_dir` .* already holds files"):
        export_gguf_adapter(base, adapter_of(base, tmp_path / "adapter", LoRA()), tmp_path / "out")
    assert (tmp_path / "out/mine.txt").read_text() == "mine"


def test_a_file_is_written_again_with_its_own_tokenizer(llama_cpp, base, tmp_path):
    """From GGUF to GGUF: the metadata of the tokenizer are taken over."""
    export_gguf(base, tmp_path / "first", ["f32"], n_lines=N_LINES)
    file = tmp_path / "first/base-F32.gguf"
    export_gguf(file, tmp_path / "again", ["f32"], n_lines=N_LINES)
    again = tmp_path / "again/base-F32-F32.gguf"
    names = [name for name in read_gguf(file).metadata if name.startswith("tokenizer.")]
    assert names
    assert all(read_gguf(again).metadata[name] == read_gguf(file).metadata[name] for name in names)
    ids = torch.arange(20)[None]
    assert torch.equal(load(again, device="cpu")[0](ids), load(file, device="cpu")[0](ids))


def test_the_modelfile_ends_answers_where_the_model_does(base, tmp_path):
    adapter = adapter_of(base, tmp_path / "adapter", LoRA())
    export_gguf(base, tmp_path / "out", ["f32"], adapter, n_lines=N_LINES)
    stops = [line for line in (tmp_path / "out/Modelfile").read_text().splitlines() if line.startswith("PARAMETER stop")]
    assert 'PARAMETER stop "</s>"' in stops
    template = read_gguf(tmp_path / "out/base-F32.gguf").metadata["tokenizer.chat_template"]
    assert "### Instruction:" in template
    about = json.loads((adapter / "adapter.json").read_text())
    assert about["prompt_style"] == "alpaca"
