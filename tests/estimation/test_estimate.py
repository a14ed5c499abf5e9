"""Estimates from the config alone, against published counts and measured memory."""

import json

import pytest
from published import config_of_2023
from tiny import make_checkpoint

from lit_llm.checkpoint.read import read_config
from lit_llm.estimation.step_memory import estimate
from lit_llm.methods.full import Full
from lit_llm.methods.lora import LoRA

KINDS = {
    "lora_qv_r8": ["--method=lora"],
    "lora_all_and_head_r8": ["--method=lora", "--lora.targets=all-linear,head"],
    "adapter": ["--method=adapter"],
    "adapter_v2": ["--method=adapter_v2"],
    "full": ["--method=full"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_published_parameter_counts_come_from_config_json_alone(tmp_path, shared_data, script, kind):
    published = json.loads((shared_data / "config_facts" / "lit_gpt_2023.json").read_text())
    row = next(row for row in published if row["name"] == "pythia-160m")
    (tmp_path / "config.json").write_text(json.dumps(config_of_2023(row)))
    options = ("--max_seq_length=64", "--micro_batch_size=1")
    found = json.loads(script("scripts/estimate.py", f"--checkpoint_dir={tmp_path}", *options, *KINDS[kind]).stdout)
    assert found["trainable_params"] == row["counts"][kind]
    own = {"full": row["counts"]["full"], "adapter_v2": (2 * 12 + 1) * 2 * 768}  # trained weights of the base: all, its norms
    added = row["counts"][kind] - own.get(kind, 0)
    assert found["total_params"] == row["counts"]["full"] + added
    memory = found["memory_bytes"]
    assert memory["optimizer"] == 8 * row["counts"][kind]
    assert memory["total"] == memory["weights"] + memory["adapter"] + memory["above_model"]


def test_planner_and_experts(tmp_path, script):
    make_checkpoint(tmp_path / "moe", "mixtral", num_local_experts=4, num_key_value_heads=2)
    options = (f"--checkpoint_dir={tmp_path}/moe", "--hours=24", "--gpu=rtx-4090", "--precision=bf16-true")
    found = json.loads(script("scripts/estimate.py", *options).stdout)
    assert found["plan"]["fits"] is True
    assert found["plan"]["tokens"] == pytest.approx(found["plan"]["tokens_per_second"] * 86400, rel=1e-3)


def test_several_gpus_by_hand(checkpoint, script):
    """Four micro-batches on four GPUs; a ring sends (n - 1) / n of the bytes, twice where it sums and gathers."""

    def planned(*options):
        options = ("--method=full", "--micro_batch_size=2", "--global_batch_size=8", "--max_seq_length=128", *options)
        return json.loads(script("scripts/estimate.py", f"--checkpoint_dir={checkpoint}", "--gpu=a100-80gb", *options).stdout)

    alone, node, nodes = planned(), planned("--devices=4"), planned("--devices=2", "--num_nodes=2", "--hours=1")
    bytes_of_weights = 4 * alone["trainable_params"]
    config = read_config(checkpoint)
    looked_up = 0 if config.tie_embeddings else config.vocab_size * config.n_embd
    compute = 256 / (312e12 * 0.4 / (6 * (alone["total_params"] - looked_up)))
    assert alone["plan"]["tokens_per_second"] == pytest.approx(256 / compute, rel=1e-3)
    for found, link in ((node, 300e9), (nodes, 25e9)):
        for strategy, sent in (("ddp", 2 * bytes_of_weights), ("fsdp", 3 * bytes_of_weights)):
            transfer = 0.75 * sent / link
            expected = [4 * 256 / (compute + transfer), 4 * 256 / max(compute, transfer)]
            assert found["plan"][strategy]["tokens_per_second"] == pytest.approx(expected, rel=1e-3)
    assert nodes["plan"]["ddp"]["tokens"] == pytest.approx(3600 * nodes["plan"]["ddp"]["tokens_per_second"][0], rel=1e-3)
    assert node["plan"]["fsdp"]["memory_bytes"] < node["plan"]["ddp"]["memory_bytes"] == alone["memory_bytes"]["total"]


@pytest.mark.parametrize("options", [("--devices=2",), ("--hours=1",), ("--devices=0", "--gpu=rtx-4090")])
def test_a_plan_needs_a_gpu(checkpoint, script, options):
    done = script("scripts/estimate.py", f"--checkpoint_dir={checkpoint}", *options, check=False)
    assert done.returncode == 2 and "error: " in done.stderr


def test_dpo_and_checkpointing_are_estimated(tmp_path, checkpoint, script):
    def above(*options):
        done = script("scripts/estimate.py", f"--checkpoint_dir={checkpoint}", *options)
        return json.loads(done.stdout)["memory_bytes"]["above_model"]

    assert above("--method=dpo") > above("--method=lora") > above("--method=lora", "--activation_checkpointing")


def test_mixed_precision_holds_float32_and_multiplies_in_half(checkpoint):
    """Weights as with 32-true, activations below; where the base trains, bf16-true is mixed too."""
    config = read_config(checkpoint)

    def memory(method, precision):
        return estimate(config, method, 4, 128, False, False, precision, None)["memory_bytes"]

    full, mixed, half = (memory(LoRA(), precision) for precision in ("32-true", "bf16-mixed", "bf16-true"))
    assert mixed["weights"] == full["weights"] == 2 * half["weights"]
    assert half["activations"] < mixed["activations"] < full["activations"]
    assert memory(Full(), "bf16-true") == memory(Full(), "bf16-mixed")
