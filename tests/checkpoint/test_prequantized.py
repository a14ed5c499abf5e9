"""Checkpoints whose weights are quantized already, compared with transformers and the libraries that write them."""

import shutil

import pytest
import torch
from families import relative_difference
from prequantized import BNB, bitsandbytes, plain
from transformers import AutoModelForCausalLM

from lit_llm.checkpoint.convert import convert
from lit_llm.checkpoint.load import load
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.prequantized import stored_quantization
from lit_llm.model.quantized_linear import QuantizedLinear

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
    stored = dict(tensors(folder))
    for name in ("q", "k", "v", "o"):
        ours, upstream = held[f"h.1.attn.{name}"], f"model.layers.1.self_attn.{name}_proj."
        assert torch.equal(ours.weight.flatten(), stored[upstream + "weight"].flatten())
        scales = stored[upstream + ("SCB" if quantization == "bnb.int8" else "weight.absmax")]
        assert torch.equal(ours.absmax.flatten(), scales)
    assert relative_difference(logits(model), logits(theirs)) < 1e-5


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors").items()


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
