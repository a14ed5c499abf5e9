"""Damaged and hostile pre-quantized folders: a model that loads, or an error that names the folder."""

import json
from random import Random

import pytest
import torch
from fuzz import fuzz, mutated_json, mutated_safetensors, result_or_clear_error
from hypothesis import strategies as st
from prequantized import make_quantized, plain
from safetensors.torch import load_file, save

from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.prequantized import stored_quantization
from lit_llm.errors import CheckpointError

KINDS = ("bnb.nf4", "bnb.nf4-dq", "bnb.int8", "gptq", "awq", "fp8 in blocks", "int8 in groups", "compressed-tensors", "mxfp4")
DRAWN = st.data()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind, and its stored tensors."""
    at = tmp_path_factory.mktemp("quantized")
    source = plain(at / "plain", vocab_size=300, num_hidden_layers=1)
    made = {kind: make_quantized(kind, at / kind.replace(" ", "-"), source) for kind in KINDS}
    return {kind: (folder, load_file(folder / "model.safetensors")) for kind, folder in made.items()}


def load(folder, name, content):
    """Load the model of a folder whose file `name` has another content."""
    original = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    try:
        with result_or_clear_error(str(folder), errors=(CheckpointError,)):
            load_model(folder, quantize=stored_quantization(folder))
    finally:
        (folder / name).write_bytes(original)


@fuzz(st.sampled_from(KINDS), DRAWN)
def test_mutated_quantization_config(folders, kind, data):
    folder, _ = folders[kind]
    config = json.loads((folder / "config.json").read_text())
    about = data.draw(mutated_json(config["quantization_config"]))
    rest = json.dumps({key: value for key, value in config.items() if key != "quantization_config"}).encode()
    load(folder, "config.json", b'{"quantization_config": ' + about + b", " + rest[1:])


DTYPES = [torch.uint8, torch.int8, torch.int32, torch.int64, torch.float16, torch.float32, torch.float8_e4m3fn, torch.bool]


def changed(tensor, random):
    """The tensor in another shape, of another dtype, or with other values."""
    dim = random.randrange(tensor.dim()) if tensor.dim() else 0
    how = random.choice(["shape", "shape", "dtype", "values"])
    if how == "dtype":
        return tensor.to(random.choice(DTYPES))
    if how == "values" and tensor.numel():
        raw = tensor.contiguous().view(-1).view(torch.uint8).clone()
        raw[[random.randrange(len(raw)) for _ in range(random.choice([1, 9, 999]))]] = random.choice([0, 1, 127, 128, 255])
        return raw.view(tensor.dtype).view(tensor.shape)
    n = tensor.size(dim) if tensor.dim() else 1
    shapes = [
        lambda: tensor.flatten(),
        lambda: tensor[None],
        lambda: tensor.flatten()[0] if tensor.numel() else tensor,
        lambda: tensor.flatten()[:0],
        lambda: tensor.mT if tensor.dim() > 1 else tensor,
        lambda: tensor.narrow(dim, 0, random.randint(0, n)) if tensor.dim() else tensor,
        lambda: torch.cat([tensor, tensor], dim) if tensor.dim() else tensor,
        lambda: tensor.flatten()[: tensor.numel() // 2 * 2].view(2, -1),
    ]
    return random.choice(shapes)()


def mutate(tensors, random):
    """A file with one or two tensors of linears changed, removed, or replaced by others."""
    tensors = dict(tensors)
    names = sorted(name for name in tensors if ".layers.0." in name)
    for _ in range(random.randint(1, 2)):
        name, other = random.choice(names), random.choice(names)
        how = random.random()
        if how < 0.1:
            tensors.pop(name, None)
        elif how < 0.2:
            tensors[name] = tensors.get(other, torch.ones(1))
        else:
            tensors[name] = changed(tensors.get(name, torch.ones(1)), random)
    return save({name: tensor.clone().contiguous() for name, tensor in tensors.items()})


@fuzz(st.sampled_from(KINDS), st.integers(0, 2**64))
def test_mutated_tensors_of_linears(folders, kind, seed):
    folder, tensors = folders[kind]
    load(folder, "model.safetensors", mutate(tensors, Random(seed)))


@fuzz(st.sampled_from(KINDS), DRAWN)
def test_mutated_files_of_weights(folders, kind, data):
    folder, _ = folders[kind]
    load(folder, "model.safetensors", data.draw(mutated_safetensors((folder / "model.safetensors").read_bytes())))
