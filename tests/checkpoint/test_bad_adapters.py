"""Adapter folders that a person or a program has changed: refused with file, key, value and what to do."""

import json
import resource

import pytest
from methods import METHODS
from safetensors.torch import load_file, save_file

from lit_llm.checkpoint.adapters import attach_adapter, trained_style, write_adapter
from lit_llm.checkpoint.load_model import load_model
from lit_llm.errors import CheckpointError


@pytest.fixture
def model(checkpoint):
    return load_model(checkpoint)


@pytest.fixture
def adapter(checkpoint, tmp_path):
    """Return a function that writes an adapter of a method, with changes to the values of its adapter.json."""

    def write(method, change=lambda about: None):
        model, kind = load_model(checkpoint), METHODS[method]()
        kind.attach(model)
        write_adapter(tmp_path, model, kind, checkpoint, "alpaca")
        about = json.loads((tmp_path / "adapter.json").read_text())
        change(about)
        (tmp_path / "adapter.json").write_text(json.dumps(about))
        return tmp_path

    return write


def argument(**values):
    return lambda about: about["arguments"].update(values)


def without(key):
    return lambda about: about.pop(key)


BROKEN = [
    ("lora", argument(r=0), "arguments: `r` must be above 0 and at most 65536, found 0"),
    ("lora", argument(r=10**9), "arguments: `r` must be above 0 and at most 65536, found 1000000000"),
    ("lora", argument(r="8"), "arguments: r must be an integer, found '8'"),
    ("lora", argument(r=60000), "'h.0.attn.k.lora.A' is [8, 32], expected [60000, 32]"),
    ("lora", argument(alpha=float("inf")), "arguments: alpha must be a finite number, found inf"),
    ("lora", argument(dropout=1), "arguments: `dropout` must be at least 0 and below 1, found 1"),
    ("lora", argument(targets=["q", 1]), "arguments: targets[1] must be a string, found 1"),
    ("lora", argument(targets="qkv"), "arguments: target 'qkv' matches no linear of this model"),
    ("lora", argument(rank=8), "arguments: rank is unknown; known: r, alpha, dropout"),
    ("ia3", argument(r=8), "arguments: r is unknown; known: none"),
    ("adapter", argument(prompt_length=10**9), "`prompt_length` must be above 0 and at most 65536, found 1000000000"),
    ("adapter", argument(start_layer=-1), "`start_layer` must be at least 0, found -1"),
    ("adapter_v2", argument(start_layer=2), "`adapter.start_layer` 2 leaves no layer: the model has 2"),
    ("lora", lambda about: about.update(arguments=[]), "arguments must be an object, found []"),
    ("lora", lambda about: about.update(method=["lora"]), "method must be a string, found ['lora']"),
    ("lora", lambda about: about.update(method="full"), "method 'full' is not known; known: lora"),
    ("lora", lambda about: about.update(prompt_style="alpacca"), "prompt_style must be 'chat_template', 'alpaca', "),
    ("lora", without("prompt_style"), "prompt_style is missing"),
    ("lora", without("arguments"), "arguments is missing, an object"),
    ("lora", without("base_checkpoint_dir"), "base_checkpoint_dir is missing, a string"),
]


@pytest.mark.parametrize(("method", "change", "message"), BROKEN)
def test_a_changed_adapter_json_is_refused(adapter, model, method, change, message):
    folder, before = adapter(method, change), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as error:
        attach_adapter(model, folder)
    assert message in str(error.value)
    assert str(folder) in str(error.value)
    assert str(error.value).endswith("Train the adapter again") or "this version has trained" in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_arguments_that_are_missing_have_their_defaults(adapter, model):
    """An adapter of a version that did not have an argument."""
    folder = adapter("lora", lambda about: about["arguments"].pop("use_dora"))
    attach_adapter(model, folder)


def test_tensors_of_another_dtype_are_refused(adapter, model):
    path = adapter("lora") / "adapter.safetensors"
    save_file({name: tensor.int() for name, tensor in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors: tensor h\.0.* has dtype torch\.int32"):
        attach_adapter(model, path.parent)


STYLES = [({}, "prompt_style is missing"), ({"prompt_style": 3}, "found 3"), ([], "must be an object")]


@pytest.mark.parametrize(("about", "message"), STYLES)
def test_a_changed_finetuned_json_is_refused(tmp_path, about, message):
    (tmp_path / "finetuned.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=rf"finetuned\.json.*{message}.*Finetune or merge again"):
        trained_style(tmp_path)
