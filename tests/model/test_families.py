"""Every family against transformers: tiny random models, saved as Hugging Face saves them and loaded as users load them."""

import re
import shutil

import pytest
import torch
from conftest import REPOSITORY
from families import BY_NAME, CASES, EVERY_PART, Case, make_reference, random_ids, relative_difference
from gguf_cases import GGUF_CASES
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from lit_llm.checkpoint.gguf_config import ARCHITECTURES, LIKE_LLAMA
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.prequantized import FORMATS
from lit_llm.checkpoint.read import empty_model, read_tensors, weight_files
from lit_llm.checkpoint.tables import TABLES
from lit_llm.checkpoint.tables.rows import names_of
from lit_llm.checkpoint.tensor_names import to_hf
from lit_llm.checkpoint.write import write_checkpoint
from lit_llm.model.config import Config
from lit_llm.model.families import FAMILIES
from lit_llm.model.kv_cache import KVCache


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="module")
def folder(case, tmp_path_factory):
    return tmp_path_factory.mktemp(case.name)


@pytest.fixture(scope="module")
def reference(case, folder):
    return make_reference(case, folder)


@pytest.fixture(scope="module")
def model(reference, folder):
    return load_model(folder).eval()


@torch.inference_mode()
def test_logits_equal_transformers(case, reference, model):
    ids = random_ids(case, 2, 24)
    assert relative_difference(model(ids), reference(ids).logits) < 1e-5


@torch.inference_mode()
def test_packed_documents_equal_separate_ones(case, model):
    lengths = [5, 1, 20, 9]  # one is longer than the windows and than the original context of scaled RoPE
    ids = random_ids(case, 1, sum(lengths))
    packed = model(ids, lengths).split(lengths, dim=1)
    for document, logits in zip(ids.split(lengths, dim=1), packed, strict=True):
        assert relative_difference(logits, model(document)) < 1e-5


@torch.inference_mode()
def test_decoding_with_a_cache_equals_no_cache(case, model):
    """Prompts of different lengths in one batch, then one token at a time, past the sliding window."""
    n_prompt = torch.tensor([11, 3])
    ids = random_ids(case, 2, 16)
    full = model(ids)
    cache = KVCache(model.config, 2, 20, "cpu", torch.float32)
    prompts = torch.where(torch.arange(11) < n_prompt[:, None], ids[:, :11], 0)  # padded on the right
    logits = model.head(model.hidden(prompts, cache=cache, ends=n_prompt))[[0, 1], n_prompt - 1]
    for step in range(5):
        assert relative_difference(logits, full[[0, 1], n_prompt + step - 1]) < 1e-5
        positions = (n_prompt + step)[:, None]
        cache.length = int(positions.max()) + 1
        logits = model.head(model.hidden(ids.gather(1, positions), cache=cache, positions=positions))[:, 0]
    assert relative_difference(logits, full[[0, 1], n_prompt + 4]) < 1e-5


def test_export_gives_the_same_file_back(case, reference, model, folder):
    original = {name: read() for name, read in read_tensors(*weight_files(folder, native=False))}
    lit = {name: lambda tensor=tensor: tensor for name, tensor in model.state_dict().items()}
    exported = dict(to_hf(model.config, lit))
    assert original.keys() == exported.keys()
    for name, tensor in original.items():
        assert torch.equal(exported[name], tensor.to(exported[name].dtype)), name


def test_converted_folder_and_shards_give_the_same_model(case, reference, model, folder, tmp_path):
    (tmp_path / "lit").mkdir()
    write_checkpoint(tmp_path / "lit", model, folder)
    reference.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    shutil.copy(folder / "config.json", tmp_path / "shards")
    assert len(weight_files(tmp_path / "shards", native=False)[0]) > 1
    for twin in (load_model(tmp_path / "lit"), load_model(tmp_path / "shards")):
        assert twin.config == model.config
        assert twin.fingerprint == model.fingerprint
        for name, tensor in model.state_dict().items():
            assert torch.equal(twin.state_dict()[name], tensor), name


@pytest.fixture(scope="module")
def parts():
    return {part for case in EVERY_PART for part in _parts(case)}


def _parts(case):
    """Kinds of modules by their place in the model and by the parameters that they have."""
    sizes = {"vocab_size": case.vocab_size, "pad_token_id": 0, **case.sizes}
    model = empty_model(Config.from_hf(AutoConfig.for_model(case.family, **sizes).to_dict()))
    return {
        (re.sub(r"\d+", "{}", name), type(module), *(name for name, _ in module.named_parameters(recurse=False)))
        for name, module in model.named_modules()
    }


def test_a_few_models_have_every_part(case, parts):
    assert _parts(case) <= parts


def test_weight_table_covers_the_model_exactly(case, model):
    entries = TABLES[model.config.model_type](model.config).values()
    table = [name for entry in entries for name in names_of(entry)]
    assert len(table) == len(set(table))
    tensors = {re.sub(r"\.\d+(?=\.)", ".{}", name) for name in model.state_dict()}
    rows = [[row for row in table if name in (row, f"{row}.weight", f"{row}.bias")] for name in tensors]
    assert all(len(found) == 1 for found in rows)
    assert set(table) == {row for found in rows for row in found}


def test_gradients_equal_transformers(case, reference, folder):
    """In training mode, of all weights, by way of the embedding and of the parts of each layer that are not fused."""
    ids, weight = random_ids(case, 2, 12), torch.linspace(-1, 1, case.vocab_size)
    model = load_model(folder).train()
    model.requires_grad_(True)
    (model(ids) * weight).sum().backward()
    reference.zero_grad()
    (reference(ids).logits * weight).sum().backward()
    # As weights, the gradients take the names and the layout of Hugging Face.
    ours = dict(to_hf(model.config, {name: lambda p=p: p.grad for name, p in model.named_parameters()}))
    theirs = {name: p.grad for name, p in reference.named_parameters()}
    assert len(ours.keys() & theirs.keys()) > 2 + len(theirs) // 2
    for name in ours.keys() & theirs.keys():
        if re.search(r"\bk_proj.bias$", name) and not model.config.rotary_size:
            # Without RoPE it adds the same number to all scores of a query, which softmax ignores: its gradient is 0 but for
            # rounding errors.
            largest = theirs[name.replace("bias", "weight")].abs().max()
            assert max(ours[name].abs().max(), theirs[name].abs().max()) < 1e-5 * largest, name
        else:
            assert relative_difference(ours[name], theirs[name]) < 1e-5, name


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
@pytest.mark.parametrize("window", [5, 300])
@torch.inference_mode()
def test_window_over_many_blocks_of_queries_equals_transformers(family, window, tmp_path):
    """Queries attend in blocks of 256, or of the window where that is longer."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
    case = Case(family, family, {**sizes, "num_key_value_heads": 1, "sliding_window": window})
    reference, ids = make_reference(case, tmp_path), random_ids(case, 1, 700)
    model = load_model(tmp_path)
    logits = model(ids)
    assert relative_difference(logits, reference(ids).logits) < 1e-5
    assert relative_difference(model(ids.repeat(1, 2), [700, 700]), logits.repeat(1, 2, 1)) < 1e-5


def models_table() -> str:
    """The table of tutorials/models.md."""
    lines = ["| `model_type` | published checkpoints | variants compared with transformers |", "|---|---|---|"]
    for model_type, family in FAMILIES.items():
        variants = [case.name for case in CASES if case.old_keys.get("model_type", case.family) == model_type]
        assert variants, f"no test compares {model_type} with transformers"
        lines.append(f"| `{model_type}` | {family.published} | {', '.join(variants)} |")
    return "\n".join(lines) + "\n"


def formats_table() -> str:
    """The table of formats in tutorials/models.md."""
    in_gguf = {row.model_type for row in ARCHITECTURES.values()} | {*LIKE_LLAMA}
    assert in_gguf == {case.family for case, _ in GGUF_CASES}, "tests/support/gguf_cases.py writes and reads each"
    gguf = ", ".join(f"`{name}`" for name in FAMILIES if name in in_gguf)
    quantized = ", ".join(f"`{name}`" for name in FORMATS if name != "mxfp4")
    rows = [
        ("folder of Hugging Face", "yes", "yes", "all"),
        (f"[quantized folder](quantize.md): {quantized}", "yes", "dequantized", "all"),
        ("[quantized folder](quantize.md): `mxfp4`", "yes", "dequantized", "`gpt_oss`"),
        ("[LoRA adapter of PEFT](finetune_methods.md#adapters-of-peft)", "yes", "yes, except updates of experts", "all"),
        ("[GGUF](gguf.md)", "yes", "yes, and LoRA alone", gguf),
        ("[Lit-GPT and litgpt](from_lit_gpt.md)", "yes", "no", "those with the same parts"),
    ]
    lines = ["| format | read | written | families |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("make", [models_table, formats_table])
def test_the_tables_of_models_are_those_of_the_code(make):
    assert make() in (REPOSITORY / "tutorials" / "models.md").read_text()


def _rewrite(folder, change) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        # The first GPT-2 checkpoints: the decoder alone, with its causal masks.
        ("gpt2", lambda tensors: {k.removeprefix("transformer."): v for k, v in tensors.items()}),
        ("gpt2", lambda tensors: tensors | {"transformer.h.0.attn.bias": torch.ones(1, 1, 96, 96)}),
        ("gpt2", lambda tensors: tensors | {"transformer.h.1.attn.masked_bias": torch.tensor(-1e4)}),
        ("pythia", lambda tensors: tensors | {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 64, 64)}),
        ("pythia", lambda tensors: tensors | {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(1)}),
        ("llama", lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
        (
            "glm4_moe",
            lambda tensors: (
                tensors
                | {
                    "model.layers.3.eh_proj.weight": torch.ones(1, 1),
                    "model.layers.3.mlp.gate.e_score_correction_bias": torch.ones(1),
                }
            ),
        ),
        (
            "deepseek_v3",
            lambda tensors: (
                tensors
                | {
                    "model.layers.3.embed_tokens.weight": torch.ones(1, 1),
                    "model.layers.3.self_attn.kv_a_layernorm.weight": torch.ones(1),
                    "model.layers.3.shared_head.head.weight": torch.ones(1, 1),
                }
            ),
        ),
        ("ernie4_5_moe", lambda tensors: tensors | {"model.mtp_block.0.mlp.up_proj.weight": torch.ones(1, 1)}),
        ("falcon-7b", lambda tensors: tensors | {"lm_head.weight": tensors["transformer.word_embeddings.weight"].clone()}),
    ],
)
def test_tensors_as_old_checkpoints_have_them(name, change, tmp_path):
    make_reference(BY_NAME[name], tmp_path)
    model = load_model(tmp_path)
    _rewrite(tmp_path, change)
    old = load_model(tmp_path)
    assert old.fingerprint == model.fingerprint
    assert all(torch.equal(old.state_dict()[key], tensor) for key, tensor in model.state_dict().items())


@torch.inference_mode()
def test_experts_without_a_token_do_not_run_in_inference(tmp_path):
    case = BY_NAME["mixtral"]
    make_reference(case, tmp_path)
    model, ran = load_model(tmp_path).eval(), []
    for expert in model.h[0].mlp.experts:
        expert.register_forward_hook(lambda module, inputs, output: ran.append(len(output)))
    model(random_ids(case, 1, 1))
    assert ran == [1, 1]
