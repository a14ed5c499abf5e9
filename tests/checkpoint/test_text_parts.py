"""Multimodal checkpoints, opened as their text models, against transformers' multimodal classes given text."""

import json
import re
import warnings

import pytest
import torch
from cases_text_parts import TEXT_PART_CASES, make_multimodal
from conftest import REPOSITORY
from families import relative_difference
from safetensors.torch import load_file, save_file
from test_export import make_adapter
from transformers import AutoConfig, AutoModelForCausalLM

from lit_llm.checkpoint.adapters import attach_adapter
from lit_llm.checkpoint.convert import convert
from lit_llm.checkpoint.export import export_hf, export_peft
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.read import read_config
from lit_llm.errors import CheckpointError
from lit_llm.model.config import Config
from lit_llm.model.families import TEXT_PARTS

IDS = torch.randint(3, 99, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=TEXT_PART_CASES)
def model_type(request):
    return request.param


@pytest.fixture(scope="module")
def reference(model_type):
    return make_multimodal(model_type)


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    """As transformers saves it."""
    folder = tmp_path_factory.mktemp("multimodal")
    reference.save_pretrained(folder)
    return folder


def load(folder):
    with pytest.warns(UserWarning, match="the text model is opened alone; [0-9]+ tensors are omitted: "):
        return load_model(folder).eval()


def _logits(model, ids=IDS):
    with torch.no_grad():
        found = model(ids)
    return getattr(found, "logits", found)


def test_cases_are_all_rows():
    assert TEXT_PART_CASES.keys() == TEXT_PARTS.keys()


def table():
    rows = [f"| `{name}` | {part.published} | `{part.family}` |" for name, part in TEXT_PARTS.items()]
    return "\n".join(["| `model_type` | published checkpoints | text model |", "|---|---|---|", *rows]) + "\n"


def test_the_table_of_text_parts_is_that_of_the_code():
    assert table() in (REPOSITORY / "tutorials" / "models.md").read_text(), table()


def test_logits_and_gradients_equal_transformers(reference, folder):
    model = load(folder)
    assert relative_difference(_logits(model), _logits(reference)) < 1e-5
    model.requires_grad_(True)
    reference.zero_grad()
    weight = torch.linspace(-1, 1, 99)
    for each in (model, reference):
        found = each(IDS)
        (getattr(found, "logits", found) * weight).sum().backward()
    text = next(module for module in reference.modules() if hasattr(module, "embed_tokens"))
    assert relative_difference(model.wte.weight.grad, text.embed_tokens.weight.grad) < 1e-5
    for ours, theirs in zip(model.h, text.layers, strict=True):
        if hasattr(theirs, "self_attn"):
            assert relative_difference(ours.attn.k.weight.grad, theirs.self_attn.k_proj.weight.grad) < 1e-5
        mlp = getattr(theirs, "mlp", None) or theirs.feed_forward
        mlp, ours_mlp = getattr(mlp, "shared_expert", mlp), getattr(ours.mlp, "shared", ours.mlp)
        assert relative_difference(ours_mlp.down.weight.grad, mlp.down_proj.weight.grad) < 1e-5


def test_omitted_tensors_are_counted_and_unknown_ones_refused(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    vision = [name for name in tensors if not re.search("language_model|text_model|lm_head|^model.(layers|embed|norm)", name)]
    assert vision
    with pytest.warns(UserWarning, match=f"; {len(vision)} tensors are omitted: .*(vision_|visual).* ?\\([0-9]+\\)"):
        load_model(folder)
    save_file(tensors | {"audio_tower.conv.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected tensor audio_tower\.conv\.weight"):
        load_model(tmp_path)
    gone = next(name for name in tensors if re.search(r"layers\.1\.[\w.]+\.up_proj\.weight$", name))
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, tmp_path / "model.safetensors")
    with (
        pytest.warns(UserWarning, match="omitted"),
        pytest.raises(CheckpointError, match=r"1 tensors are missing, .*1\.[\w.]+\.up_proj"),
    ):
        load_model(tmp_path)


def test_other_names_in_files_give_the_same_model(model_type, reference, folder, tmp_path):
    """Those of transformers' modules; and of the first releases of Qwen2-VL, which have one flat config.json, too."""
    model, config = load(folder), json.loads((folder / "config.json").read_text())
    tensors = {name: tensor.contiguous() for name, tensor in reference.state_dict().items()}
    if config["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    if TEXT_PARTS[model_type].flat:
        tensors = {
            name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
            for name, tensor in tensors.items()
        }
        text = config.pop("text_config")
        rope = text.pop("rope_parameters")
        theta = rope.pop("rope_theta")
        config = (
            text | config | {"rope_theta": theta, "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
        )
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    other = load(tmp_path)
    assert other.fingerprint == model.fingerprint
    assert torch.equal(_logits(other), _logits(model))


def test_converted_and_exported_folders_hold_the_text_model_alone(reference, folder, tmp_path):
    base = tmp_path / "base"
    reference.save_pretrained(base)
    expected, fingerprint = _logits(load(base)), load(base).fingerprint
    with pytest.warns(UserWarning, match="omitted"):
        convert(base)
    converted = load_model(base).eval()
    assert converted.fingerprint == fingerprint
    assert torch.equal(_logits(converted), expected)
    export_hf(base, tmp_path / "hf")
    assert load_model(tmp_path / "hf").fingerprint == fingerprint
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert json.loads((tmp_path / "hf/config.json").read_text())["architectures"] == [type(model).__name__]
    assert relative_difference(_logits(model.eval()), _logits(reference)) < 1e-5


@pytest.mark.parametrize("is_converted", [False, True], ids=["published", "converted"])
def test_peft_opens_an_adapter_over_the_multimodal_model(reference, model_type, is_converted, tmp_path):
    from peft import PeftModel

    base = tmp_path / "base"
    reference.save_pretrained(base)
    if is_converted:
        with pytest.warns(UserWarning, match="omitted"):
            convert(base)
    targets = "attn" if "moe" in model_type else "all-linear"  # experts are not linears in transformers
    adapter = make_adapter(tmp_path / "adapter", base, targets=targets)
    ours = load_model(base)
    attach_adapter(ours, adapter)
    ours.eval()  # the adapter too, which has dropout
    export_peft(base, adapter, tmp_path / "peft")
    theirs = PeftModel.from_pretrained(make_multimodal(model_type), tmp_path / "peft").eval()
    assert relative_difference(_logits(ours), _logits(theirs)) < 1e-5
    assert relative_difference(_logits(ours), _logits(reference)) > 1e-3


@pytest.mark.parametrize(
    "target_modules", [["q_proj", "v_proj", "fc1"], r".*(language|text)_model.*\.(q|v|down)_proj"], ids=str
)
def test_an_adapter_that_peft_made_over_the_multimodal_model_opens(model_type, target_modules, reference, folder, tmp_path):
    """With every prefix that files have for the text model. Updates of vision linears are omitted."""
    from peft import LoraConfig, get_peft_model

    part = TEXT_PARTS[model_type]
    torch.manual_seed(0)
    theirs = get_peft_model(make_multimodal(model_type), LoraConfig(r=4, target_modules=target_modules)).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.15)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors, first = load_file(path), next(iter(part.names))
    n_vision = sum(not name.startswith(f"base_model.model.{first}") for name in tensors)
    for prefix in [prefix for prefix, family in part.names.items() if family == "model."]:
        renamed = {name.replace(f"model.{first}", f"model.{prefix}"): tensor for name, tensor in tensors.items()}
        save_file(renamed, path, {"format": "pt"})
        about = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps({**about, "target_modules": target_modules}))
        ours = load(folder)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            attach_adapter(ours, tmp_path)
        assert [f"{n_vision} tensors are omitted" in str(w.message) for w in seen] == [True] * (n_vision > 0)
        assert relative_difference(_logits(ours.eval()), _logits(theirs)) < 1e-5
        assert relative_difference(_logits(ours), _logits(reference)) > 1e-3


def test_missing_keys_take_upstreams_defaults(model_type):
    """Of the text part: a config.json without them describes the same model as transformers' own."""
    text = {"model_type": TEXT_PARTS[model_type].family} if "qwen" not in model_type else {}
    written = AutoConfig.for_model(model_type, text_config=dict(text)).to_dict()
    ours = Config.from_hf({"model_type": model_type, "text_config": text})
    assert ours == Config.from_hf(written)
    if TEXT_PARTS[model_type].flat:
        assert Config.from_hf({"model_type": model_type}) == ours


def test_the_stored_tensors_decide_if_the_head_is_tied(tmp_path):
    """The published Mistral Small 3.1 has a head of its own, but nothing in its config.json says so."""
    make_multimodal("mistral3").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["tie_word_embeddings"]
    path.write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="They are untied"):
        assert not read_config(tmp_path).tie_embeddings


@pytest.mark.parametrize(
    ("hf", "told"),
    [
        ({"model_type": "llava"}, "text_config must be an object, found null"),
        ({"model_type": "llava", "text_config": {"model_type": "llava"}}, "model_type 'llava' is not supported"),
        ({"model_type": "qwen3_vl", "text_config": {"rope_scaling": {"rope_type": "mystery"}}}, "mystery"),
    ],
)
def test_what_is_not_a_text_part_is_refused(hf, told):
    with pytest.raises(CheckpointError, match=told):
        Config.from_hf(hf)
