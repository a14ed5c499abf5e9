"""Whole commands on pre-quantized folders and adapters that do not fit: exit 2 with the file, the tensor and the remedy."""

import runpy
import sys

import pytest
from conftest import REPOSITORY
from prequantized import SIZES, edit_config, in_groups, mxfp4, plain
from safetensors.torch import load_file, save_file
from test_peft_adapters import make_peft
from tiny import make_checkpoint


@pytest.fixture
def run_script(monkeypatch, capsys, tmp_path):
    """Run a script that fails in this process; return stderr."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        told = capsys.readouterr()
        assert stopped.value.code == 2, told.err
        assert not told.out
        assert told.err.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in told.err
        return told.err.splitlines()[-1]

    return run


def without(folder, *ends):
    path = folder / "model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if not n.endswith(ends)}, path, {"format": "pt"})


def ask(folder):
    return "generate/base.py", "--checkpoint_dir", folder, "--prompt", "the cat", "--accelerator", "cpu"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return plain(tmp_path_factory.mktemp("plain") / "model")


def gptq(folder, source):
    """With groups in another order than the inputs, as `desc_act` has them."""
    in_groups(folder, source, "gptq")
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True})
    return folder


def test_gptq_whose_groups_are_missing(run_script, source, tmp_path, data_dir):
    folder = gptq(tmp_path / "model", source)
    without(folder, "layers.1.mlp.up_proj.g_idx")
    told = run_script(*ask(folder))
    assert f"{folder}: tensor model.layers.1.mlp.up_proj.g_idx is missing, next to model.layers.1.mlp.up_proj.qweight" in told
    assert told.endswith("Download the checkpoint again")
    train = ("finetune/lora.py", "--checkpoint_dir", folder, "--data_dir", data_dir, "--accelerator", "cpu")
    assert run_script(*train, "--out_dir", tmp_path / "out") == told
    assert not (tmp_path / "out").exists()


def test_gptq_whose_groups_are_others_than_its_scales(run_script, source, tmp_path):
    folder = gptq(tmp_path / "model", source)
    path = folder / "model.safetensors"
    scales = {name: tensor[:2].clone() for name, tensor in load_file(path).items() if name.endswith("1.mlp.up_proj.scales")}
    save_file(load_file(path) | scales, path, {"format": "pt"})
    told = run_script(*ask(folder))
    assert f"{folder}: tensor model.layers.1.mlp.up_proj.scales has shape [2, 128], expected [4, 128]" in told
    assert told.endswith("Weights and quantization_config do not belong together. Download the checkpoint again")


@pytest.mark.parametrize("part", ["gate_up_proj_scales", "down_proj_blocks"])
def test_mxfp4_experts_that_are_missing(part, run_script, tmp_path):
    folder, _ = mxfp4(tmp_path / "model")
    without(folder, f"layers.1.mlp.experts.{part}")
    other = part.replace("scales", "blocks") if "scales" in part else part.replace("blocks", "scales")
    told = run_script(*ask(folder))
    assert f"tensor model.layers.1.mlp.experts.{part} is missing, next to model.layers.1.mlp.experts.{other}" in told
    assert told.endswith("Download the checkpoint again")


def test_an_expert_that_is_missing(run_script, tmp_path):
    changes = {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}
    folder = make_checkpoint(tmp_path / "model", "mixtral", **changes)
    without(folder, "layers.1.block_sparse_moe.experts.3.w2.weight")
    told = run_script(*ask(folder))
    assert f"{folder}: 1 tensors are missing, among them model.layers.1.block_sparse_moe.experts.3.w2.weight" in told
    assert told.endswith("Download the checkpoint again")


def test_mxfp4_with_fewer_experts_than_its_config(run_script, tmp_path):
    folder, _ = mxfp4(tmp_path / "model")
    path = folder / "model.safetensors"
    fewer = {name: tensor[:3].clone() for name, tensor in load_file(path).items() if "layers.0.mlp.experts" in name}
    save_file(load_file(path) | fewer, path, {"format": "pt"})
    told = run_script(*ask(folder))
    assert f"{folder}: tensor model.layers.0.mlp.experts." in told
    assert "its config says 4 experts" in told
    assert told.endswith("Download the checkpoint again")


def test_a_quant_method_that_is_not_known(run_script, source, tmp_path):
    folder = gptq(tmp_path / "model", source)
    edit_config(folder, quantization_config={"quant_method": "hqq"})
    told = run_script(*ask(folder))
    assert f"{folder}/config.json: quantization_config: quant_method 'hqq' is not supported; supported: bitsandbytes" in told
    assert told.endswith("quantize it while loading: --quantize bnb.nf4")


def test_an_adapter_of_another_base(run_script, source, checkpoint, tmp_path):
    """A wider one, whose shapes differ; PEFT's folder names it."""
    make_peft(checkpoint, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    folder = gptq(tmp_path / "model", source)
    adapted = ("--checkpoint_dir", folder, "--adapter_dir", tmp_path / "adapter")
    asked = run_script("generate/lora.py", *adapted, "--prompt", "the cat", "--accelerator", "cpu")
    assert f"{tmp_path}/adapter/adapter_model.safetensors: tensor base_model.model.model.layers.0.self_attn.q_proj" in asked
    assert asked.endswith(f"The adapter was trained on another base, {checkpoint}. Use that one as --checkpoint_dir")
    merged = run_script("scripts/merge_lora.py", *adapted, "--output_dir", tmp_path / "merged")
    assert merged == asked
    assert not (tmp_path / "merged").exists()
