"""What leaves lit_llm opens in transformers and PEFT with the same logits."""

import shutil

import pytest
import torch
from families import all_families, make_reference
from methods import randomize
from safetensors.torch import load_file, save_file
from tiny import make_checkpoint
from transformers import AutoModelForCausalLM

from lit_llm.checkpoint.adapters import trained_style, write_adapter, write_finetuned
from lit_llm.checkpoint.convert import convert
from lit_llm.checkpoint.export import export_hf, export_peft
from lit_llm.checkpoint.load import load
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.merge import merge_adapters
from lit_llm.checkpoint.read import read_config, read_tensors, weight_files
from lit_llm.methods.adapter import Adapter
from lit_llm.methods.full import Full
from lit_llm.methods.lora import LoRA


def make_adapter(folder, base, seed=0, style="alpaca", **arguments):
    """A LoRA adapter that changes the model much. Returns its folder."""
    model, method = load_model(base), LoRA(dropout=0.3, **arguments)
    torch.manual_seed(seed)
    method.attach(model)
    randomize(model)
    for name, parameter in model.named_parameters():
        if name.endswith("magnitude"):
            parameter.data *= 1.2
    folder.mkdir()
    write_adapter(folder, model, method, base, style)
    return folder


@torch.no_grad()
def logits(model, ids):
    found = model.eval()(ids)
    return getattr(found, "logits", found)


def probe(case):
    return torch.randint(case.vocab_size, (2, 20), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("case", all_families())
def test_merged_adapter_has_the_same_logits_in_transformers(case, tmp_path):
    base = tmp_path / "base"
    make_reference(case, base)
    adapter = make_adapter(tmp_path / "adapter", base, targets="all-linear")
    expected = logits(_attached(base, adapter), probe(case))
    proof = merge_adapters(base, [adapter], [1.0], tmp_path / "merged")
    assert proof["max_difference"] < 1e-4
    assert proof["top1_agreement"] == 1
    export_hf(tmp_path / "merged", tmp_path / "hf")
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    found = logits(theirs, probe(case))
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-5
    assert (logits(load_model(base), probe(case)) - expected).abs().max() > 1e-3


def _attached(base, adapter):
    from lit_llm.checkpoint.adapters import attach_adapter

    model = load_model(base)
    attach_adapter(model, adapter)
    return model


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
@pytest.mark.parametrize("case", all_families())
def test_adapter_opens_in_peft_with_the_same_logits(case, variant, tmp_path):
    import peft

    base = tmp_path / "base"
    make_reference(case, base)
    targets = "attn" if read_config(base).n_expert else "q,o,up,head"  # transformers does not hold experts as linears
    adapter = make_adapter(tmp_path / "adapter", base, targets=targets, r=4, **variant)
    export_peft(base, adapter, tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "peft")
    expected, found = logits(_attached(base, adapter), probe(case)), logits(theirs, probe(case))
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-5


def test_weighted_sum_of_adapters_is_the_sum_of_their_changes(checkpoint, tmp_path):
    adapters = [make_adapter(tmp_path / f"a{i}", checkpoint, seed=i, targets=t) for i, t in enumerate(("q,v", "v,up"))]
    merge_adapters(checkpoint, adapters, [0.25, -2.0], tmp_path / "merged")
    base, merged = load_model(checkpoint), load_model(tmp_path / "merged")
    alone = []
    for i, adapter in enumerate(adapters):
        merge_adapters(checkpoint, [adapter], [1.0], tmp_path / f"m{i}")
        alone.append(load_model(tmp_path / f"m{i}"))
    for name, weight in base.state_dict().items():
        changes = [model.state_dict()[name] - weight for model in alone]
        expected = weight + 0.25 * changes[0] - 2.0 * changes[1]
        torch.testing.assert_close(merged.state_dict()[name], expected, rtol=1e-5, atol=1e-5)


def test_merging_into_bfloat16_reports_what_the_rounding_costs(checkpoint, tmp_path):
    AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    adapter = make_adapter(tmp_path / "adapter", tmp_path / "half", targets="all-linear")
    proof = merge_adapters(tmp_path / "half", [adapter], [1.0], tmp_path / "merged")
    assert proof["max_difference"] < 1e-4
    assert 0 < proof["kl"] < 0.01
    assert 0.9 < proof["top1_agreement"] <= 1
    assert load_model(tmp_path / "merged").lm_head.weight.dtype == torch.bfloat16


@pytest.fixture
def loud(checkpoint, tmp_path):
    """A base whose logits go into the hundreds, where rounding in float32 makes differences above 1e-4."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.lm_head.weight.data *= 300
    model.save_pretrained(tmp_path / "loud")
    return tmp_path / "loud"


def test_large_logits_are_merged(loud, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", loud, targets="all-linear")
    proof = merge_adapters(loud, [adapter], [1.0], tmp_path / "merged")
    assert proof["max_difference"] > 1e-4
    assert proof["share"] < 1e-5
    assert proof["top1_agreement"] == 1


@pytest.mark.parametrize("base", ["checkpoint", "loud"])
def test_a_merge_that_changes_the_logits_is_refused(base, request, tmp_path, monkeypatch):
    """A merge that forgets one linear stands for any fault in it."""
    from lit_llm.checkpoint import merge

    checkpoint = request.getfixturevalue(base)

    def forgetful(model):
        from lit_llm.methods.inject import eject

        eject(model.h[0].attn.q, "lora")
        real(model)

    real = merge.merge
    monkeypatch.setattr(merge, "merge", forgetful)
    adapter = make_adapter(tmp_path / "adapter", checkpoint)
    with pytest.raises(ValueError, match=r"nothing was written\. Use the adapter unmerged .* or write it for PEFT"):
        merge_adapters(checkpoint, [adapter], [1.0], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_only_lora_is_merged(checkpoint, tmp_path):
    model, method = load_model(checkpoint), Adapter(start_layer=0)
    method.attach(model)
    (tmp_path / "prompts").mkdir()
    write_adapter(tmp_path / "prompts", model, method, checkpoint, None)
    with pytest.raises(ValueError, match="Only LoRA can be merged"):
        merge_adapters(checkpoint, [tmp_path / "prompts"], [1.0], tmp_path / "merged")


def test_scripts_convert_there_and_back(checkpoint, tmp_path, script):
    base = shutil.copytree(checkpoint, tmp_path / "base")
    script("scripts/convert_hf_checkpoint.py", "--checkpoint_dir", base)
    (base / "model.safetensors").unlink()
    script("scripts/convert_lit_checkpoint.py", "--checkpoint_dir", base, "--output_dir", tmp_path / "hf")
    before, after = (dict(read_tensors(*weight_files(f, native=False))) for f in (checkpoint, tmp_path / "hf"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name](), after[name]()) for name in before)
    adapter = make_adapter(tmp_path / "adapter", checkpoint)
    done = script(
        "scripts/merge_lora.py", "--checkpoint_dir", base, "--adapter_dir", adapter, "--output_dir", tmp_path / "merged"
    )
    assert "100.0% of the most likely tokens agree" in done.stdout
    _, tokenizer = load(tmp_path / "merged")
    assert tokenizer.encode("a cat") == load(checkpoint)[1].encode("a cat")


def test_a_merged_model_is_asked_as_its_adapter_was_trained(checkpoint, tmp_path, script):
    """By generate/full.py as by generate/lora.py, and wherever the style of a folder is looked up."""
    adapter = make_adapter(tmp_path / "adapter", checkpoint, style="vicuna")
    merged = tmp_path / "merged"
    told = script("scripts/merge_lora.py", "--checkpoint_dir", checkpoint, "--adapter_dir", adapter, "--output_dir", merged)
    assert "vicuna" in told.stdout
    assert trained_style(merged) == "vicuna"
    ask = ("--prompt=the red cat", "--temperature=0", "--max_new_tokens=12")
    expected = script("generate/lora.py", "--checkpoint_dir", checkpoint, "--adapter_dir", adapter, *ask).stdout
    assert script("generate/full.py", "--checkpoint_dir", merged, *ask).stdout == expected
    told = script("generate/chat.py", "--checkpoint_dir", merged, input="the red cat\n").stderr
    assert "prompt style vicuna" in told
    told = script("generate/full.py", "--checkpoint_dir", checkpoint, *ask, check=False)
    assert told.returncode == 2
    assert "scripts/merge_lora.py" in told.stderr


def test_merging_several_prompt_styles_warns_and_keeps_the_first(checkpoint, tmp_path, capsys):
    styles = ("vicuna", "alpaca")
    adapters = [make_adapter(tmp_path / style, checkpoint, style=style) for style in styles]
    merge_adapters(checkpoint, adapters, [0.5, 0.5], tmp_path / "merged")
    assert trained_style(tmp_path / "merged") == "vicuna"
    assert "several prompt styles (vicuna, alpaca): the merged model is asked in vicuna" in capsys.readouterr().err


@pytest.mark.parametrize("tied", [True, False])
def test_adapter_on_a_tied_head_warns_and_exports_to_peft(tied, data_dir, tmp_path, script):
    base, adapter = make_checkpoint(tmp_path / "base", tie_word_embeddings=tied), tmp_path / "run" / "final"
    short = ("--train.max_steps=1", "--eval.samples=0", "--eval.final=false", "--lora.targets=q,head")
    told = script("finetune/lora.py", "--checkpoint_dir", base, "--data_dir", data_dir, "--out_dir", adapter.parent, *short)
    assert ("cannot be merged. To merge later, omit head from `lora.targets`" in told.stderr) == tied
    folders = ("--checkpoint_dir", base, "--adapter_dir", adapter, "--output_dir")
    told = script("scripts/merge_lora.py", *folders, tmp_path / "merged", check=not tied)
    if tied:
        assert told.returncode == 2
        assert "or write it for PEFT: python scripts/convert_lit_checkpoint.py" in told.stderr
    assert (tmp_path / "merged").exists() != tied
    script("scripts/convert_lit_checkpoint.py", *folders, tmp_path / "peft")
    assert (tmp_path / "peft" / "adapter_model.safetensors").is_file()


def test_conversion_to_half_precision(checkpoint, tmp_path):
    base = shutil.copytree(checkpoint, tmp_path / "base")
    convert(base, "bfloat16")
    assert load_model(base).wte.weight.dtype == torch.bfloat16
    assert load_model(base).fingerprint == load_model(checkpoint).fingerprint


@pytest.fixture
def mixed(checkpoint, tmp_path):
    """A base with tensors of several dtypes."""
    folder = shutil.copytree(checkpoint, tmp_path / "mixed")
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    tensors = load_file(folder / "model.safetensors")
    for i, name in enumerate(sorted(tensors)):
        tensors[name] = tensors[name].to(dtypes[i % 3])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def dtypes_of(folder, name="lit_model.safetensors"):
    return {name: tensor.dtype for name, tensor in load_file(folder / name).items()}


def test_every_writer_keeps_the_dtype_of_each_tensor(mixed, tmp_path):
    converted, full = shutil.copytree(mixed, tmp_path / "converted"), tmp_path / "full"
    convert(converted)
    expected = dtypes_of(converted)
    assert sorted(map(str, expected.values())) == sorted(map(str, dtypes_of(mixed, "model.safetensors").values()))
    adapter = make_adapter(tmp_path / "adapter", mixed, targets="all-linear,head")
    merge_adapters(mixed, [adapter], [1.0], tmp_path / "merged")
    assert dtypes_of(tmp_path / "merged") == expected
    model, method = load_model(mixed, dtype=torch.float32), Full()
    method.attach(model)
    full.mkdir()
    write_finetuned(full, model, method, mixed, None)
    assert dtypes_of(full) == expected
    export_hf(converted, tmp_path / "hf")
    assert dtypes_of(tmp_path / "hf", "model.safetensors") == dtypes_of(mixed, "model.safetensors")
    convert(converted, "float16")
    assert {*dtypes_of(converted).values()} == {torch.float16}
