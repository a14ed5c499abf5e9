"""Pre-quantized checkpoints as bases: asked, finetuned, merged, exported and opened by transformers."""

import csv
import json
import math

import pytest
import torch
from families import relative_difference
from prequantized import BNB, make_quantized, plain
from transformers import AutoModelForCausalLM, AutoTokenizer, Mxfp4Config

from lit_llm.args.evaluate import PerplexityArgs
from lit_llm.args.finetune import FullFinetuneArgs, LoRAArgs, LoRAFinetuneArgs, TrainArgs
from lit_llm.args.generate import FullGenerateArgs, LoRAGenerateArgs
from lit_llm.args.measure import EstimateArgs
from lit_llm.checkpoint.export import export_hf, export_peft
from lit_llm.checkpoint.load import load
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.merge import merge_adapters
from lit_llm.estimation.step_memory import estimate_run
from lit_llm.evaluation.perplexity import evaluate_file
from lit_llm.generation.answer_prompts import answer, answer_finetuned
from lit_llm.methods.lora import merge
from lit_llm.training.finetune import finetune

IDS = torch.randint(320, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return plain(tmp_path_factory.mktemp("plain") / "model")


@torch.no_grad()
def logits(model):
    found = model.eval()(IDS)
    return getattr(found, "logits", found)


TRAIN = TrainArgs(max_steps=20, global_batch_size=4, micro_batch_size=4, learning_rate=0.01, log_interval=1)


@pytest.mark.parametrize(
    "kind", ["bnb.nf4-dq", "bnb.int8", "gptq", "awq", "fp8", "fp8 in blocks", "compressed-tensors", "mxfp4"]
)
def test_a_quantized_base_is_finetuned_merged_and_exported(kind, source, data_dir, tmp_path, capsys):
    folder = make_quantized(kind, tmp_path / "model", source)
    run = finetune(
        LoRAFinetuneArgs(
            checkpoint_dir=folder, data_dir=data_dir, out_dir=tmp_path / "run", accelerator="cpu", train=TRAIN,
            lora=LoRAArgs(targets="all-linear", dropout=0.0),
        )
    )  # fmt: skip
    losses = [float(row["train_loss"]) for row in csv.DictReader(run.metrics.open()) if row["train_loss"]]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert ("quantize: " + (kind if kind in BNB else "null")) in (tmp_path / "run" / "args.yaml").read_text()

    capsys.readouterr()
    ask = {"prompt": "the red cat", "temperature": 0.0, "accelerator": "cpu"}
    answer(LoRAGenerateArgs(adapter_dir=run.final, **ask))
    answered = capsys.readouterr().out
    adapted = logits(load(folder, run.final, device="cpu")[0])
    assert relative_difference(adapted, logits(load(folder, device="cpu")[0])) > 1e-2
    in_memory, _ = load(folder, run.final, device="cpu", dequantize=True)
    merge(in_memory)
    assert relative_difference(logits(in_memory), adapted) < 1e-5
    merge_adapters(folder, [run.final], [1.0], tmp_path / "merged")
    assert relative_difference(logits(load(tmp_path / "merged", device="cpu")[0]), adapted) < 1e-5
    answer_finetuned(FullGenerateArgs(checkpoint_dir=tmp_path / "merged", **ask))
    assert capsys.readouterr().out == answered
    export_hf(tmp_path / "merged", tmp_path / "hf")
    assert "quantization_config" not in json.loads((tmp_path / "hf" / "config.json").read_text())
    assert relative_difference(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "hf")), adapted) < 1e-5


def test_perplexity_of_a_quantized_base_equals_the_loss_of_transformers(source, tmp_path, capsys):
    folder, text = make_quantized("mxfp4", tmp_path / "model", source), "the red cat sees a big house and a river"
    (tmp_path / "text.txt").write_text(text)
    evaluate_file(PerplexityArgs(checkpoint_dir=folder, data_file=tmp_path / "text.txt", accelerator="cpu"))
    config = Mxfp4Config(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32).float()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
    loss = theirs(ids, labels=ids).loss.item()
    assert json.loads(capsys.readouterr().out)["token_perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_an_adapter_opens_in_peft_over_the_quantized_base(source, data_dir, tmp_path):
    import peft

    folder = make_quantized("bnb.nf4", tmp_path / "model", source)
    train = TrainArgs(max_steps=3, global_batch_size=4, micro_batch_size=4, learning_rate=0.01)
    run = finetune(
        LoRAFinetuneArgs(checkpoint_dir=folder, data_dir=data_dir, out_dir=tmp_path / "run", accelerator="cpu", train=train)
    )
    export_peft(folder, run.final, tmp_path / "peft")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).dequantize().float()
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft")
    assert relative_difference(logits(theirs), logits(load(folder, run.final, device="cpu")[0])) < 1e-5


def test_full_finetuning_trains_the_dequantized_weights(source, data_dir, tmp_path):
    folder = make_quantized("bnb.nf4", tmp_path / "model", source)
    train = TrainArgs(max_steps=2, global_batch_size=4, micro_batch_size=4, learning_rate=0.01)
    run = finetune(
        FullFinetuneArgs(checkpoint_dir=folder, data_dir=data_dir, out_dir=tmp_path / "run", accelerator="cpu", train=train)
    )
    assert load_model(run.final).h[0].attn.q.weight.dtype == torch.float32
    assert not torch.equal(load_model(run.final).h[0].attn.q.weight, load_model(folder).h[0].attn.q.weight)


def test_scripts_take_a_quantized_folder(script, source, tmp_path):
    folder = make_quantized("bnb.nf4", tmp_path / "model", source)
    held = f"{folder}: bitsandbytes weights: 14 linears are held as stored, in bnb.nf4"
    asked = script("generate/base.py", "--checkpoint_dir", folder, "--prompt", "the cat", "--max_new_tokens", 4)
    assert asked.stdout.startswith("the cat")
    assert asked.stderr.count(held) == 1
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("bitsandbytes", "hqq"))
    refused = script("generate/base.py", "--checkpoint_dir", folder, "--prompt", "the cat", check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {folder}/config.json: quantization_config: quant_method 'hqq' is not supported")
    assert refused.stderr.rstrip().endswith("quantize it while loading: --quantize bnb.nf4")


@pytest.mark.parametrize(("quantize", "bits"), [(None, 4.5), ("bnb.int8", 8)])
def test_memory_is_estimated_for_the_bits_that_are_held(quantize, bits, source, tmp_path):
    folder = make_quantized("bnb.nf4", tmp_path / "model", source)
    found = estimate_run(EstimateArgs(checkpoint_dir=folder, precision="bf16-true", quantize=quantize))
    in_blocks, others = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128), 2 * 320 * 64 + 5 * 64
    assert found["memory_bytes"]["weights"] == in_blocks * bits / 8 + others * 2
