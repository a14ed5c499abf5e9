"""Damaged and hostile GGUF files: weights and a tokenizer that load, or an error that names the file."""

import struct
import uuid
from dataclasses import dataclass

import pytest
import torch
from fuzz import ODD, drawn, fuzz, mutated_bytes, result_or_clear_error
from hypothesis import strategies as st
from tiny import make_checkpoint

from lit_llm.checkpoint.gguf_export import export_gguf
from lit_llm.checkpoint.load import load
from lit_llm.errors import CheckpointError
from lit_llm.text.gguf_file import read_gguf

gguf = pytest.importorskip("gguf")

DRAWN = st.data()
NUMBERS = [0, 1, 2, 3, 7, 32, 255, 2**31 - 1, 2**31, 2**32 - 1]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    sizes = dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 1)
    sizes |= {"hidden_size": 4, "intermediate_size": 4}
    folder = tmp_path_factory.mktemp("fuzz")
    make_checkpoint(folder / "base", **sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_llm.checkpoint.gguf_export.is_installed", lambda: False)
        export_gguf(folder / "base", folder / "out", ["f32"])
    return folder / "out/base-F32.gguf"


def load_bytes(folder, content):
    path = folder / f"{uuid.uuid4().hex}.gguf"  # by its name and time a file is cached
    path.write_bytes(content)
    try:
        with result_or_clear_error(str(path), errors=(CheckpointError, FileNotFoundError)):
            model, tokenizer = load(path, device="cpu")
            tokenizer.decode(tokenizer.encode("the red cat <s> 12"))
            assert model.config.vocab_size > 0
    finally:
        path.unlink()


def value_of(item):
    """The bytes of a value with its type in front."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int) and -(2**63) <= item < 2**63:
        return struct.pack("<Iq", 11, item)
    if isinstance(item, float):
        return struct.pack("<Id", 12, item)
    if isinstance(item, list):
        values = [value_of(x) for x in item]
        kind = values[0][:4] if values else struct.pack("<I", 4)
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(values)) + b"".join(value[4:] for value in values)
    text = str(item).encode(errors="replace")
    return struct.pack("<IQ", 8, len(text)) + text


def pair(key, value):
    return struct.pack("<Q", len(key)) + key.encode() + value_of(value)


def with_metadata(content, metadata, start):
    """The file with other metadata, and a filler after which tensors are aligned as before."""
    pairs = b"".join(pair(key, value) for key, value in metadata.items())
    filler = pair("filler", "." * ((start - 24 - len(pairs) - len(pair("filler", ""))) % 32))
    return content[:16] + struct.pack("<Q", len(metadata) + 1) + pairs + filler + content[start:]


def changed_metadata(content, metadata, start):
    def change(random):
        found = dict(metadata)
        for _ in range(random.randint(1, 3)):
            key, how = random.choice(list(found)), random.random()
            value = found[key]
            if how < 0.1:
                del found[key]
            elif how < 0.4 and isinstance(value, list) and value:
                part = list(value)
                place = random.randrange(len(part))
                part[place : place + random.randint(0, 2)] = random.choice([[], [part[0]], [random.choice(ODD)]])
                found[key] = part
            elif how < 0.6 and isinstance(value, int | float):
                found[key] = random.choice([-value, value + 1, value // 2, value * 2, random.choice(NUMBERS)])
            else:
                found[key] = random.choice([*ODD, random.choice(list(metadata.values()))])
        return with_metadata(content, found, start)

    return drawn(change)


def changed_places(content, start, end):
    """Files with other names, shapes, types or offsets of tensors."""

    def change(random):
        out = bytearray(content)
        for _ in range(random.randint(1, 3)):
            place = random.randrange(start, end - 8)
            new = random.choice([struct.pack("<I", random.choice(NUMBERS)), random.randbytes(1), struct.pack("<Q", 2**63)])
            out[place : place + len(new)] = new
        return bytes(out)

    return drawn(change)


@dataclass(repr=False)
class Parts:
    content: bytes
    metadata: dict
    places: int
    """The first byte after the metadata."""
    data: int
    """The first byte of tensors."""


@pytest.fixture(scope="module")
def parts(file):
    content, found = file.read_bytes(), read_gguf(file)
    first = next(iter(found.tensors))
    start = content.index(struct.pack("<Q", len(first)) + first.encode())
    return Parts(content, found.metadata, start, min(info.start for info in found.tensors.values()))


def test_a_file_written_again_is_the_same(file, parts):
    """Otherwise changed metadata would fail for another reason."""
    path = file.with_name("same.gguf")
    path.write_bytes(with_metadata(parts.content, parts.metadata, parts.places))
    (ours, tokenizer), (theirs, expected) = load(path, device="cpu"), load(file, device="cpu")
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    assert tokenizer.encode("the red cat") == expected.encode("the red cat")


@fuzz(DRAWN)
def test_mutated_gguf_metadata(file, parts, data):
    load_bytes(file.parent, data.draw(changed_metadata(parts.content, parts.metadata, parts.places)))


@fuzz(DRAWN)
def test_mutated_gguf_tensors(file, parts, data):
    load_bytes(file.parent, data.draw(changed_places(parts.content, parts.places, parts.data)))


@fuzz(DRAWN)
def test_mutated_gguf_bytes(file, parts, data):
    head = data.draw(mutated_bytes(parts.content[: parts.data]))
    load_bytes(file.parent, head + parts.content[parts.data :])
