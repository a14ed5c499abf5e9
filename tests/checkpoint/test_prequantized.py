"""Checkpoints whose weights are quantized already, compared with transformers and the libraries that write them."""

import json
import shutil

import bitsandbytes as bnb
import pytest
import torch
from families import relative_difference
from prequantized import BNB, COMPRESSED, bitsandbytes, compressed_tensors, edit_config, fp8, in_groups, mxfp4, plain
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lit_llm.checkpoint.convert import convert
from lit_llm.checkpoint.load import load
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.prequantized import stored_quantization
from lit_llm.errors import CheckpointError, OptionError
from lit_llm.model import quantized_linear
from lit_llm.model.quantized_linear import Linear4bit, QuantizedLinear

IDS = torch.randint(320, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return plain(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module", params=BNB)
def quantization(request):
    return request.param


@pytest.fixture(scope="module")
def folder(quantization, source, tmp_path_factory):
    return bitsandbytes(tmp_path_factory.mktemp(quantization) / "model", source, **BNB[quantization])


@pytest.fixture(scope="module")
def theirs(folder):
    """transformers' model with the weights that it dequantizes itself."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).dequantize().float().eval()


@torch.no_grad()
def logits(model):
    found = model(IDS)
    return getattr(found, "logits", found)


def test_bits_of_bitsandbytes_are_held_as_stored(quantization, folder, theirs, capsys):
    assert stored_quantization(folder) == quantization
    model, _ = load(folder, device="cpu")
    assert f"14 linears are held as stored, in {quantization}" in capsys.readouterr().err
    held = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    assert len(held) == 14
    stored = load_file(folder / "model.safetensors")
    for name in ("q", "k", "v", "o"):
        ours, upstream = held[f"h.1.attn.{name}"], f"model.layers.1.self_attn.{name}_proj."
        assert torch.equal(ours.weight.flatten(), stored[upstream + "weight"].flatten())
        scales = stored[upstream + ("SCB" if quantization == "bnb.int8" else "weight.absmax")]
        assert torch.equal(ours.absmax.flatten(), scales)
    assert relative_difference(logits(model), logits(theirs)) < 1e-5


def test_bits_of_bitsandbytes_are_dequantized(folder, theirs, tmp_path, capsys):
    model = load_model(folder).eval()
    assert "bitsandbytes weights are dequantized to float32 while loading" in capsys.readouterr().err
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    assert relative_difference(logits(model), logits(theirs)) < 1e-5
    shutil.copytree(folder, tmp_path / "converted")
    convert(tmp_path / "converted", dequantize=True)
    twins = [model, load_model(tmp_path / "converted"), load(folder, device="cpu")[0]]
    assert len({twin.fingerprint for twin in twins}) == 1
    assert torch.equal(logits(twins[1].eval()), logits(model))


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_tensors_are_dequantized(name, source, tmp_path, capsys):
    pytest.importorskip("compressed_tensors")
    reference = compressed_tensors(tmp_path / "model", source, name)
    format_ = json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]["format"]
    assert format_ == name.split(",")[0]
    model = load_model(tmp_path / "model").eval()
    assert "compressed-tensors weights are dequantized to float32" in capsys.readouterr().err
    assert torch.equal(model.h[1].mlp.down.weight, reference.model.layers[1].mlp.down_proj.weight)
    assert relative_difference(logits(model), logits(reference)) < 1e-5
    assert relative_difference(logits(load_model(source).eval()), logits(reference)) > 1e-3  # they were quantized


@pytest.mark.parametrize("quantization", ["bnb.nf4-dq", "bnb.int8"])
@pytest.mark.parametrize(("model_type", "n_held"), [("phi3", 14), ("gpt_neox", 12), ("gpt2", 0)])
def test_fused_linears_are_split_in_stored_bits(model_type, n_held, quantization, tmp_path):
    """q, k and v one below the other, interleaved by heads, and transposed, which is dequantized."""
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256} if model_type == "gpt2" else {"pad_token_id": 0}
    source = plain(tmp_path / "plain", model_type, **sizes)
    folder = bitsandbytes(tmp_path / "model", source, **BNB[quantization])
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).dequantize().float().eval()
    model, _ = load(folder, device="cpu")
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == n_held
    for ours in (model, load_model(folder).eval()):
        assert relative_difference(logits(ours), logits(theirs)) < 1e-5


def test_each_rank_holds_its_own_rows(source, tmp_path, monkeypatch):
    folder = bitsandbytes(tmp_path / "model", source, **BNB["bnb.nf4"])
    whole, _ = load(folder, device="cpu")
    monkeypatch.setattr(quantized_linear, "own_rows", lambda n: slice(n // 4, n // 2))
    monkeypatch.setattr(quantized_linear, "whole_rows", lambda rows, n: rows.repeat(4, 1))
    parts = load_model(folder, quantize="bnb.nf4", in_parts=True)
    for name in ("weight", "absmax"):
        of_rank, of_all = (getattr(model.h[0].mlp.up, name) for model in (parts, whole))
        assert torch.equal(of_rank, of_all[32:64])


def test_linears_that_the_library_skipped_stay_as_they_are(source, tmp_path):
    skipped = ["model.layers.0.mlp.down_proj", "lm_head"]
    folder = bitsandbytes(tmp_path / "model", source, skip=skipped, **BNB["bnb.nf4"])
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).dequantize().float().eval()
    for quantize in (None, "bnb.nf4"):  # given or not, it is the type that is stored
        model, _ = load(folder, device="cpu", quantize=quantize)
        assert isinstance(model.h[0].mlp.down, torch.nn.Linear)
        assert not isinstance(model.h[1].mlp.down, torch.nn.Linear)
        assert relative_difference(logits(model), logits(theirs)) < 1e-5


def test_blocks_that_cross_rows_are_dequantized(tmp_path):
    source = plain(tmp_path / "plain", intermediate_size=96)
    folder = bitsandbytes(tmp_path / "model", source, **BNB["bnb.nf4-dq"])
    model, _ = load(folder, device="cpu")
    down = model.h[1].mlp.down
    assert isinstance(down, torch.nn.Linear)  # rows of 96 weights in blocks of 64
    assert not isinstance(model.h[1].mlp.up, torch.nn.Linear)
    library = AutoModelForCausalLM.from_pretrained(folder).model.layers[1].mlp.down_proj.weight
    state = library.quant_state
    state.shape = torch.Size((1, 64 * 96))  # its kernel for CPUs takes the scale of another block where blocks cross rows
    expected = bnb.functional.dequantize_4bit(library.data, state).view(64, 96)
    torch.testing.assert_close(down.weight, expected, rtol=1e-6, atol=1e-7)


def test_another_type_is_quantized_from_the_stored_weights(source, tmp_path, capsys):
    folder = bitsandbytes(tmp_path / "model", source, **BNB["bnb.int8"])
    model, _ = load(folder, device="cpu", quantize="bnb.nf4")
    assert "are dequantized to float32 and quantized to bnb.nf4 while loading" in capsys.readouterr().err
    dequantized = load_model(folder)
    again = Linear4bit(64, 64, None, "nf4", nested=False)
    again.load_weight(dequantized.h[0].attn.q.weight, "cpu")
    assert torch.equal(model.h[0].attn.q.weight, again.weight)
    assert model.fingerprint == dequantized.fingerprint


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_linears_in_groups_equal_their_rounded_weights(method, source, tmp_path):
    folder, rounded = in_groups(tmp_path / "model", source, method)
    shutil.copytree(source, tmp_path / "rounded")
    save_file(load_file(source / "model.safetensors") | rounded, tmp_path / "rounded" / "model.safetensors", {"format": "pt"})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "rounded").eval()
    zeros = {name.replace("weight", "bias"): torch.zeros(len(weight)) for name, weight in rounded.items()}
    save_file(
        load_file(folder / "model.safetensors") | zeros, folder / "model.safetensors", {"format": "pt"}
    )  # as AutoGPTQ does
    model, _ = load(folder, device="cpu")
    assert relative_difference(logits(model), logits(theirs)) < 1e-5


def test_fp8_equals_transformers(source, tmp_path):
    from transformers import FineGrainedFP8Config

    folder = fp8(tmp_path / "model", source, [32, 16])
    config = FineGrainedFP8Config(weight_block_size=(32, 16), dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32).eval()
    model, _ = load(folder, device="cpu")
    assert torch.equal(model.h[1].mlp.up.weight, theirs.model.layers[1].mlp.up_proj.weight)
    assert relative_difference(logits(model), logits(theirs)) < 1e-5


def test_fp8_with_a_scale_per_tensor_and_of_activations(source, tmp_path):
    folder = fp8(tmp_path / "model", source, None, "weight_scale")
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("weight_scale")]:
        tensors[name.replace("weight_scale", "input_scale")] = torch.tensor(3.0)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found = load_model(folder).h[1].mlp.up.weight
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(found, tensors[name].float() * tensors[f"{name}_scale"])
    assert relative_difference(found, load_model(source).h[1].mlp.up.weight) < 0.05


def test_gpt_oss_as_published_equals_transformers(tmp_path, capsys):
    """Experts in MXFP4, which transformers dequantizes to bfloat16: here exactly, since codes have few bits."""
    from transformers import Mxfp4Config

    folder, rounded = mxfp4(tmp_path / "model")
    config = Mxfp4Config(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32).eval().float()
    model, _ = load(folder, device="cpu")
    assert "mxfp4 weights are dequantized to float32 while loading" in capsys.readouterr().err
    experts = theirs.model.layers[1].mlp.experts
    for name in ("gate_up_proj", "down_proj"):
        assert torch.equal(getattr(experts, name).float(), rounded[f"model.layers.1.mlp.experts.{name}"])
    assert torch.equal(model.h[1].mlp.experts[3].gate.weight, experts.gate_up_proj[3, :, 0::2].t())
    assert torch.equal(model.h[1].mlp.experts[3].up.weight, experts.gate_up_proj[3, :, 1::2].t())
    assert torch.equal(model.h[1].mlp.experts[3].down.weight, experts.down_proj[3].t())
    assert relative_difference(logits(model), logits(theirs)) < 1e-5
    convert(folder, dequantize=True)
    assert torch.equal(logits(load(folder, device="cpu")[0]), logits(model))


def change(folder, name, tensor):
    """Replace a tensor of the folder, or remove it for None."""
    tensors = load_file(folder / "model.safetensors") | {name: tensor}
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / "model.safetensors", {"format": "pt"})


STEM = "model.layers.1.mlp.up_proj.weight"
STATE = f"{STEM}.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (f"{STEM}.absmax", None, r"up_proj\.weight\.absmax is missing"),
        (f"{STEM}.quant_map", None, r"up_proj\.weight\.quant_map is missing"),
        (STATE, None, r"up_proj\.weight\.quant_state\.bitsandbytes__nf4 is missing"),
        (STEM, None, r"up_proj\.weight is missing"),
        (STATE, torch.tensor([123], dtype=torch.uint8), "quant_state.bitsandbytes__nf4 is not valid JSON"),
        (STATE, torch.tensor(list(b"{}"), dtype=torch.uint8), "blocksize is missing|quant_type is missing"),
        (f"{STEM}.absmax", torch.ones(3), r"up_proj\.weight\.absmax has shape \[3\], expected \[128\]"),
        (f"{STEM}.absmax", torch.full((128,), torch.nan), r"up_proj\.absmax has 128 of 128 values that are NaN"),
        (STEM, torch.zeros(5, 1, dtype=torch.uint8), r"up_proj\.weight has 5 bytes, expected 4096"),
    ],
)
def test_damaged_bits_of_bitsandbytes_are_named(name, tensor, message, source, tmp_path):
    folder = bitsandbytes(tmp_path / "model", source, **BNB["bnb.nf4"])
    change(folder, name, tensor)
    with pytest.raises(CheckpointError, match=message) as error:
        load(folder, device="cpu")
    assert str(folder) in str(error.value)
    assert "ownload" in str(error.value) or "another checkpoint" in str(error.value)


def test_bits_of_another_shape_than_the_model_are_refused(source, tmp_path):
    folder = bitsandbytes(tmp_path / "model", source, **BNB["bnb.nf4"])
    edit_config(folder, intermediate_size=192)
    with pytest.raises(CheckpointError, match=r"down_proj\.weight has shape \[64, 64\], its config says \[64, 96\]"):
        load(folder, device="cpu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"quant_method": "hqq"},
            "json: quantization_config: quant_method 'hqq' is not supported; supported: bitsandbytes",
        ),
        ({"bits": 4}, "quant_method null is not supported"),
        ([], "quant_method null is not supported"),
        ({"quant_method": "gptq", "bits": 5}, "config.json: quantization_config: bits = 5 is not supported"),
        ({"quant_method": "awq", "bits": 4, "group_size": "all"}, "group_size must be a positive integer"),
    ],
)
def test_quantizations_that_are_not_supported_are_named(config, message, source, tmp_path):
    shutil.copytree(source, tmp_path / "model")
    edit_config(tmp_path / "model", quantization_config=config)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "model", device="cpu")


def test_conversion_of_quantized_weights_is_asked_for(source, folder):
    with pytest.raises(OptionError, match=r"need no conversion: use the folder as it is.* Add `dequantize`"):
        convert(folder)
    with pytest.raises(OptionError, match=r"`dequantize` is for quantized weights, but those in .* are not quantized"):
        convert(source, dequantize=True)
