"""GGUF files as checkpoints: tensors of all types against the gguf package, memory, and files that cannot be used."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from tiny import make_checkpoint, make_data

from lit_llm.checkpoint.convert import convert
from lit_llm.checkpoint.gguf_export import export_gguf
from lit_llm.checkpoint.gguf_tensors import read_tensor
from lit_llm.checkpoint.load import load
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.read import read_config
from lit_llm.errors import CheckpointError
from lit_llm.text.gguf_file import read_gguf

gguf = pytest.importorskip("gguf")

N_LINES = 200
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def random_blocks(kind, shape: tuple[int, int]) -> np.ndarray:
    """Bytes of valid blocks: those of float16 scales are finite."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    draw = np.random.default_rng(0)
    data = draw.integers(0, 256, (shape[0], shape[1] // block * size), dtype=np.uint8)
    if kind.name in ("F32", "F16", "BF16"):
        return gguf.quants.quantize(draw.standard_normal(shape, dtype=np.float32), kind).view(np.uint8).reshape(shape[0], -1)
    scale = np.float16(0.01).tobytes()
    blocks = data.reshape(-1, size)
    scales = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q8_0": (0,), "Q4_0": (0,), "Q5_0": (0,)}
    places = scales.get(kind.name, (0, 2))
    for start in places:
        blocks[:, start : start + 2] = np.frombuffer(scale, np.uint8)
    return data


@pytest.mark.parametrize("name", TYPES)
def test_tensors_are_those_of_the_gguf_package(name, tmp_path):
    """More rows than are dequantized at once, after another tensor."""
    kind = gguf.GGMLQuantizationType[name]
    shape = (5000, 256)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("first", np.ones(7, dtype=np.float32))
    writer.add_tensor("second", random_blocks(kind, shape), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_tensor("second", read_gguf(tmp_path / "a.gguf").tensors["second"])
    theirs = gguf.GGUFReader(tmp_path / "a.gguf").tensors[1]
    assert found.shape == shape
    assert np.array_equal(found.float().numpy(), gguf.quants.dequantize(theirs.data, theirs.tensor_type))


def test_metadata_are_those_of_the_gguf_package(file):
    theirs = {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items() if not name.startswith("GGUF.")}
    assert read_gguf(file).metadata == theirs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base") / "org" / "model", hidden_size=64, intermediate_size=96)


@pytest.fixture(scope="module")
def file(folder, tmp_path_factory) -> Path:
    """The checkpoint in float16."""
    out = tmp_path_factory.mktemp("gguf") / "out"
    export_gguf(folder, out, ["f32"], n_lines=N_LINES)
    return out / "model-F32.gguf"


def test_a_file_is_the_same_checkpoint_as_its_folder(folder, file):
    (ours, our_tokenizer), (theirs, their_tokenizer) = load(file, device="cpu"), load(folder, device="cpu")
    assert ours.config == theirs.config
    assert ours.fingerprint == theirs.fingerprint
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    for text in ("the red cat", " a  b\n", "It's 12345 <s>x</s>"):
        assert our_tokenizer.encode(text) == their_tokenizer.encode(text)
        assert our_tokenizer.decode(our_tokenizer.encode(text)) == their_tokenizer.decode(their_tokenizer.encode(text))
    assert (our_tokenizer.bos_id, our_tokenizer.eos_ids) == (their_tokenizer.bos_id, their_tokenizer.eos_ids)


@pytest.mark.parametrize("quantize", ["bnb.nf4", "bnb.int8"])
def test_a_file_is_quantized_while_loading_as_a_folder_is(quantize, folder, file):
    ids = torch.arange(20)[None]
    ours, theirs = (load_model(path, quantize=quantize).eval()(ids) for path in (file, folder))
    assert torch.equal(ours, theirs)


def run(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, REPOSITORY / script, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd)


def test_lora_on_a_file_fits_its_folder(folder, file, tmp_path):
    """An adapter trained on the file is one of the folder, and the converted file, too."""
    data = make_data(tmp_path / "data")
    done = run(
        "finetune/lora.py", "--checkpoint_dir", file, "--data_dir", data, "--out_dir", tmp_path / "run", "--train.max_steps", 3,
        "--eval.samples", 0, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ids = torch.arange(20)[None]
    expected = load(file, tmp_path / "run/final", device="cpu")[0](ids)
    assert torch.equal(load(folder, tmp_path / "run/final", device="cpu")[0](ids), expected)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(file.read_bytes())
    convert(copy)
    assert torch.equal(load(tmp_path / "copy", tmp_path / "run/final", device="cpu")[0](ids), expected)
    assert json.loads((tmp_path / "copy/config.json").read_text())["model_type"] == "llama"


def edited(file: Path, target: Path, **changes) -> Path:
    """A copy with other metadata; None removes a key."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(target, changes.get("general.architecture", "llama"))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = changes.get(name, field.contents())
        if value is not None:
            writer.add_key_value(name, value, field.types[0] if name not in changes else gguf.GGUFValueType.get_type(value))
    for name in changes.keys() - reader.fields.keys():
        writer.add_key_value(name, changes[name], gguf.GGUFValueType.get_type(changes[name]))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "qwen9", r"architecture 'qwen9' is not supported; supported: falcon"),
        ("llama.block_count", "two", r"metadata llama.block_count must be an integer; found 'two'"),
        ("llama.embedding_length", None, r"metadata llama.embedding_length must be an integer; it is missing"),
        ("llama.attention.key_length", 20, r"metadata llama.attention.value_length is 16"),
        ("llama.attention.key_length", 0, r"attention.key_length, the size of a head, is 0"),
        ("llama.rope.scaling.type", "magic", r"rope.scaling.type 'magic'"),
    ],
)
def test_wrong_metadata_name_file_key_and_value(key, value, message, file, tmp_path):
    path = edited(file, tmp_path / "bad.gguf", **{key: value})
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.model", "bert", "tokenizer.ggml.model 'bert' is not supported"),
        ("tokenizer.ggml.pre", "mystery", "tokenizer.ggml.pre 'mystery' names a way to split text that is not known"),
        (
            "tokenizer.ggml.merges",
            ["t h"],
            r"bad.gguf/tokenizer.json is not a tokenizer: Token `th` out of vocabulary",
        ),
        ("tokenizer.ggml.eos_token_id", 10**6, "eos_token_id 1000000 is not one of 300 tokens"),
    ],
)
def test_wrong_tokenizers_name_file_key_and_value(key, value, message, file, tmp_path):
    path = edited(file, tmp_path / "bad.gguf", **{key: value})
    with pytest.raises(CheckpointError, match=message):
        load(path, device="cpu")


def test_a_truncated_file_is_refused_wherever_it_ends(file, tmp_path):
    content = file.read_bytes()
    for n in [4, 10, 40, 1000, len(content) // 2, len(content) - 40]:
        path = tmp_path / "cut.gguf"
        path.write_bytes(content[:n])
        with pytest.raises(CheckpointError, match=r"cut.gguf is truncated.*Download it again"):
            load_model(path)


def test_an_unknown_tensor_type_is_named(file, tmp_path):
    content, name = bytearray(file.read_bytes()), b"blk.0.attn_q.weight"
    place = content.index(name) + len(name) + 4 + 16  # dimensions
    content[place : place + 4] = struct.pack("<I", 999)
    path = tmp_path / "new.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"new.gguf: tensor blk.0.attn_q.weight has the type 999"):
        load_model(path)


def test_an_impossible_shape_is_named(file, tmp_path):
    content, name = bytearray(file.read_bytes()), b"blk.0.attn_q.weight"
    place = content.index(name) + len(name) + 4
    content[place : place + 16] = struct.pack("<QQ", 0, 2**63)
    path = tmp_path / "odd.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"odd.gguf is truncated or damaged: tensor 'blk.0.attn_q.weight' has shape"):
        load_model(path)


def test_the_command_line_reports_a_bad_file(file, tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(file.read_bytes()[:5000])
    done = run("generate/base.py", "--checkpoint_dir", path, "--prompt", "a", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    path.write_bytes(b"not GGUF")
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        read_config(path)


def test_the_parts_of_a_split_file_are_one_checkpoint(file, tmp_path):
    reader = gguf.GGUFReader(file)
    half = len(reader.tensors) // 2
    for i, tensors in enumerate((reader.tensors[:half], reader.tensors[half:])):
        writer = gguf.GGUFWriter(tmp_path / f"m-{i + 1:05d}-of-00002.gguf", "llama")
        for name, field in reader.fields.items() if i == 0 else ():
            if not name.startswith("GGUF.") and name != "general.architecture":
                writer.add_key_value(name, field.contents(), field.types[0])
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", 2)
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    expected = load_model(file).state_dict()
    for part in (1, 2):
        found = load_model(tmp_path / f"m-{part:05d}-of-00002.gguf").state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / "m-00001-of-00002.gguf").rename(alone / "m-00001-of-00002.gguf")
    with pytest.raises(FileNotFoundError, match=r"needs m-00002-of-00002\.gguf, which is missing"):
        load_model(alone / "m-00001-of-00002.gguf")


def test_harness_and_server_take_a_file(folder, file):
    pytest.importorskip("lm_eval")
    pytest.importorskip("fastapi")
    from lm_eval.api.instance import Instance
    from serving import serving

    from lit_llm.args.serve import ServeArgs
    from lit_llm.evaluation.harness import HarnessModel
    from lit_llm.serving.app import make_app

    requests = [Instance("loglikelihood", {}, pair, 0) for pair in (("the red", " cat"), ("a dog", " sees the river"))]
    scores = [HarnessModel(*load(path, device="cpu"), path, 2).loglikelihood(requests) for path in (folder, file)]
    assert scores[0] == scores[1]
    texts = []
    for path in (folder, file):
        app = make_app(*load(path, device="cpu"), ServeArgs(checkpoint_dir=path))
        with serving(app) as url:
            body = json.dumps({"model": "model", "prompt": "the red cat", "max_tokens": 8, "temperature": 0}).encode()
            with urlopen(Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})) as answer:
                texts.append(json.load(answer)["choices"][0]["text"])
    assert texts[0] == texts[1]
    assert texts[0]
