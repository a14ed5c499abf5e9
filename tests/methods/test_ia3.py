"""IA3 against PEFT's, and its way through the scripts."""

import json

import pytest
import torch

from lit_llm.checkpoint.adapters import attach_adapter
from lit_llm.checkpoint.load_model import load_model
from lit_llm.methods.ia3 import IA3


def test_logits_and_gradients_equal_those_of_peft(checkpoint):
    import peft
    from transformers import AutoModelForCausalLM

    model = load_model(checkpoint)
    IA3().attach(model)
    targets = ["k_proj", "v_proj", "down_proj"]
    config = peft.IA3Config(target_modules=targets, feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), config)
    parameters, names = dict(theirs.named_parameters()), {}
    torch.manual_seed(0)
    for name, scale in model.named_parameters():
        if name.endswith(".ia3.scale"):
            _, layer, part, linear, *_ = name.split(".")
            part = {"attn": "self_attn"}.get(part, part)
            names[name] = f"base_model.model.model.layers.{layer}.{part}.{linear}_proj.ia3_l.default"
            with torch.no_grad():
                torch.nn.init.normal_(scale, 1.0, 0.3)
                parameters[names[name]].copy_(scale.view_as(parameters[names[name]]))
    assert len(names) == 3 * model.config.n_layer == sum("ia3_l" in name for name in parameters)
    ids = torch.arange(2, 40)[None]
    weight = torch.randn(1, ids.size(1), model.config.vocab_size)
    logits, expected = model(ids), theirs(ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    (logits * weight).sum().backward()
    (expected * weight).sum().backward()
    ours = dict(model.named_parameters())
    for name, other in names.items():
        expected = parameters[other].grad.flatten()
        size = expected.abs().max()
        assert size > 0
        torch.testing.assert_close(ours[name].grad / size, expected / size, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quantize", [None, "bnb.nf4"])
def test_scripts_train_and_use_it(tmp_path, checkpoint, data_dir, script, quantize):
    options = [] if quantize is None else [f"--quantize={quantize}"]
    done = script(
        "finetune/ia3.py", f"--checkpoint_dir={checkpoint}", f"--data_dir={data_dir}", f"--out_dir={tmp_path}/run",
        "--train.global_batch_size=8", "--train.learning_rate=0.05", "--eval.max_new_tokens=4", *options,
    )  # fmt: skip
    final = tmp_path / "run" / "final"
    assert f"python generate/ia3.py --adapter_dir {final}" in done.stdout
    assert json.loads((final / "adapter.json").read_text())["method"] == "ia3"
    assert any(line.split()[:2] == ["scales", f"{2 * (32 + 32 + 48)}"] for line in done.stderr.splitlines())
    model = load_model(checkpoint)
    attach_adapter(model, final)
    assert max((p - 1).abs().max() for n, p in model.named_parameters() if "ia3" in n) > 1e-2
    script("generate/ia3.py", f"--adapter_dir={final}", "--prompt=the red cat", "--max_new_tokens=3", *options)
    if quantize is None:
        estimated = script("scripts/estimate.py", f"--checkpoint_dir={checkpoint}", "--method=ia3", "--max_seq_length=64")
        assert json.loads(estimated.stdout)["trainable_params"] == 2 * (32 + 32 + 48)
        merged = script(
            "scripts/merge_lora.py", f"--checkpoint_dir={checkpoint}", f"--adapter_dir={final}",
            f"--output_dir={tmp_path}/merged", check=False,
        )  # fmt: skip
        assert merged.returncode == 2
        assert "Only LoRA can be merged" in merged.stderr
