"""The generate scripts: their options, prompts and answers as JSON lines, and what they refuse."""

import json
import shutil

import pytest
import torch
import yaml
from tiny import make_checkpoint

import lit_llm
from lit_llm.args.generate import GenerateArgs, LoRAGenerateArgs, ModelArgs
from lit_llm.checkpoint.adapters import write_adapter
from lit_llm.checkpoint.load_model import load_model
from lit_llm.cli import DEMO
from lit_llm.generation import answer_prompts, load_from_options
from lit_llm.generation.generate import encode_prompt, generate
from lit_llm.methods.adapter_v2 import AdapterV2
from lit_llm.methods.lora import LoRA

PROMPTS = ["In the village", {"prompt": "The dog"}, {"text": "A letter to"}, "Where does Frida", "Why"]
TEXTS = ["In the village", "The dog", "A letter to", "Where does Frida", "Why"]


@pytest.fixture(scope="module")
def demo():
    return lit_llm.load(DEMO / "checkpoint", device="cpu")


@pytest.fixture
def run(capsys):
    """Run the script for plain models; returns what it wrote to stdout and stderr."""

    def run(**options):
        answer_prompts.continue_prompts(GenerateArgs(**{"max_new_tokens": 30, "accelerator": "cpu", **options}))
        return capsys.readouterr()

    return run


@pytest.fixture
def prompt_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    return path


def test_stop_sequences_do_not_leak_or_eat_text_in_either_output(run):
    whole = run(prompt="The dog", temperature=0.0).out
    for start in range(8, len(whole) - 12, 5):
        stop = whole[start : start + 6]
        cut = whole[: whole.index(stop, len("The dog"))] + "\n"
        for stream in (False, True):
            assert run(prompt="The dog", temperature=0.0, stop=["never there", stop], stream=stream).out == cut


def test_a_stop_text_is_taken_as_it_stands(script):
    """`[INST]` and `#` are a list and a comment in YAML."""
    done = script("generate/base.py", "--stop", "[INST]", "--stop=#", "--prompt=a", "--print_config")
    assert yaml.safe_load(done.stdout)["stop"] == ["[INST]", "#"]


def test_prompts_of_a_file_are_answered_in_order_as_each_alone(run, demo, prompt_file, tmp_path):
    run(prompt_file=prompt_file, output_file=tmp_path / "out" / "a.jsonl", batch_size=2, num_samples=2, logprobs=2)
    lines = [json.loads(line) for line in (tmp_path / "out" / "a.jsonl").read_text().splitlines()]
    assert [(line["row"], line["sample"]) for line in lines] == [(i, j) for i in range(5) for j in range(2)]
    for i, line in enumerate(lines):
        text = TEXTS[i // 2]
        assert line["prompt"] == PROMPTS[i // 2]
        (alone,) = generate(*demo, [text], max_new_tokens=30, seed=1337 + i, n_top=2)
        assert text + line["text"] == demo[1].decode(demo[1].encode(text) + alone.ids)
        assert line["finish"] == ("stop" if alone.ended else "length")
        assert line["n_tokens"] == len(alone.ids) + alone.ended
        assert [token["id"] for token in line["tokens"]] == alone.ids
        ids = torch.tensor([demo[1].encode(text) + alone.ids])
        log_probs = demo[0](ids)[0].log_softmax(-1)[-len(alone.ids) - 1 : -1]
        for expected, token in zip(log_probs, line["tokens"], strict=True):
            assert token["logprob"] == pytest.approx(expected[token["id"]].item(), abs=1e-4)
            assert [t["logprob"] for t in token["top"]] == pytest.approx(expected.topk(2).values.tolist(), abs=1e-4)
    assert "".join(token["text"] for token in lines[0]["tokens"]) == lines[0]["text"]


def test_an_interrupted_output_file_equals_an_uninterrupted_one(run, prompt_file, tmp_path):
    path = tmp_path / "a.jsonl"
    run(prompt_file=prompt_file, output_file=path)
    whole = path.read_bytes()
    for cut in (0, 5, whole.index(b"\n") + 1, whole.index(b"\n", 400) + 30, len(whole) - 1):
        path.write_bytes(whole[:cut])
        run(prompt_file=prompt_file, output_file=path, batch_size=1)  # what cannot change an answer may be another
        assert path.read_bytes() == whole
    told = run(prompt_file=prompt_file, output_file=path).err
    assert "holds all 5 answers already" in told


def test_output_files_of_other_prompts_are_refused_and_kept(run, prompt_file, tmp_path):
    path = tmp_path / "a.jsonl"
    run(prompt_file=prompt_file, output_file=path)
    whole = path.read_bytes()
    for options in ({"temperature": 0.5}, {"max_new_tokens": 4}, {"stop": ["x"]}, {"cpu_weights": "int8"}):
        with pytest.raises(ValueError, match="Use another `output_file`"):
            run(prompt_file=prompt_file, output_file=path, **options)
    other = tmp_path / "other.jsonl"
    other.write_text('"In the village"\n"another"\n')
    with pytest.raises(ValueError, match="Use another `output_file`"):
        run(prompt_file=other, output_file=path)
    for notes in ("my notes\n", "my notes", '"In the village"', '{"row": 1, "sam'):
        path.write_text(notes)
        with pytest.raises(ValueError, match="Use another `output_file`"):
            run(prompt_file=prompt_file, output_file=path)
        assert path.read_text() == notes
    path.write_bytes(whole)
    run(prompt_file=prompt_file, output_file=path)


def make_adapter(folder, method, base, seed=0):
    model = load_model(base, dtype=torch.float32)
    method.attach(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if method.trainable(name):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    folder.mkdir(exist_ok=True)
    write_adapter(folder, model, method, base, "alpaca")
    return folder


def test_a_merged_adapter_answers_as_beside_the_weights(checkpoint, tmp_path, capsys):
    folder = make_adapter(tmp_path / "lora", LoRA(targets="all-linear"), checkpoint)
    records = [{"instruction": "the red cat", "input": "a dog"}, {"messages": [{"role": "user", "content": "a"}]}, "the"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    found = []
    for merge in (False, True):
        options = {"temperature": 0.0, "max_new_tokens": 12, "accelerator": "cpu", "merge": merge}
        answer_prompts.answer(LoRAGenerateArgs(prompt_file=tmp_path / "p.jsonl", adapter_dir=folder, **options))
        found.append(capsys.readouterr().out)
    answer_prompts.answer(LoRAGenerateArgs(prompt="the red cat", input="a dog", adapter_dir=folder, **options))
    assert found[0] == found[1]
    assert json.loads(found[0].splitlines()[0])["text"] == capsys.readouterr().out[:-1]
    options |= {"prompt_file": tmp_path / "p.jsonl", "output_file": tmp_path / "a.jsonl"}
    answer_prompts.answer(LoRAGenerateArgs(adapter_dir=folder, **options))
    with pytest.raises(ValueError, match="other options"):  # rounded otherwise
        answer_prompts.answer(LoRAGenerateArgs(adapter_dir=folder, **{**options, "merge": False}))
    model, _, _ = load_from_options.load_args(ModelArgs(adapter_dir=folder, merge=True, accelerator="cpu"))
    assert not any(module._forward_hooks for module in model.modules())


def test_output_files_of_a_retrained_adapter_are_refused(checkpoint, prompt_file, tmp_path):
    def answer():
        files = {"prompt_file": tmp_path / "p.jsonl", "output_file": tmp_path / "a.jsonl"}
        answer_prompts.answer(LoRAGenerateArgs(**files, adapter_dir=folder, max_new_tokens=2, accelerator="cpu"))

    (tmp_path / "p.jsonl").write_text('"the red cat"\n"a dog"\n')
    folder = make_adapter(tmp_path / "lora", LoRA(targets="all-linear"), checkpoint)
    answer()
    answer()
    make_adapter(folder, LoRA(targets="all-linear"), checkpoint, seed=1)
    with pytest.raises(ValueError, match="of another model"):
        answer()


def test_answers_with_another_draft_are_refused_in_the_same_file(run, checkpoint, tmp_path):
    draft = shutil.copytree(checkpoint, tmp_path / "draft")
    options = {"prompt": "a", "checkpoint_dir": checkpoint, "draft_checkpoint_dir": draft, "output_file": tmp_path / "a.jsonl"}
    run(**options)
    run(**options)
    make_checkpoint(draft, seed=1)
    with pytest.raises(ValueError, match="of another model"):
        run(**options)


def test_a_prompt_is_printed_as_it_was_given(run, demo, shared_data):
    for folder in (None, shared_data / "stories260K"):
        for prompt in ("a </s> b <s> c", " Once", "Once ", "Once\u00a0upon", ""):
            model, tokenizer = demo if folder is None else lit_llm.load(folder, device="cpu")
            options = {"checkpoint_dir": folder, "prompt": prompt, "temperature": 0.0, "max_new_tokens": 5}
            ids = encode_prompt(tokenizer, prompt)
            (new,) = generate(model, tokenizer, [ids], max_new_tokens=5, temperature=0)
            more = tokenizer.decode([*ids, *new.ids])[len(tokenizer.decode(ids)) :]
            assert run(**options).out == run(**options, stream=True).out == f"{prompt}{more}\n"


def test_what_is_not_lora_cannot_be_merged(checkpoint, tmp_path):
    folder = make_adapter(tmp_path / "v2", AdapterV2(start_layer=1), checkpoint)
    with pytest.raises(ValueError, match="`merge` is for LoRA"):
        load_from_options.load_args(ModelArgs(adapter_dir=folder, merge=True))


def test_weights_are_laid_out_by_columns_where_memory_allows(monkeypatch, capsys):
    model, _, _ = load_from_options.load_args(ModelArgs(accelerator="cpu"))
    assert not model.h[0].mlp.up.weight.is_contiguous()
    monkeypatch.setattr(load_from_options, "available_bytes", lambda device: 10**6)
    model, _, _ = load_from_options.load_args(ModelArgs(accelerator="cpu"))
    assert model.h[0].mlp.up.weight.is_contiguous()
    assert "too little memory" in capsys.readouterr().err


def test_cpu_weights_and_int8_cache_continue_as_float32_does(run):
    """The demo is sure of the facts that it was trained on."""
    expected = run(prompt="Frida the", temperature=0.0).out
    for options in ({"cpu_weights": "fp16"}, {"cpu_weights": "int8"}, {"kv_cache": "int8"}):
        assert run(prompt="Frida the", temperature=0.0, **options).out == expected


MISTAKES = {
    "no prompt": ({}, "give either `prompt` or `prompt_file`"),
    "two prompts": ({"prompt": "a", "prompt_file": "p.txt"}, "give either `prompt` or `prompt_file`"),
    "nan temperature": ({"prompt": "a", "temperature": float("nan")}, "`temperature` must be 0 or at least 0.0001"),
    "negative temperature": ({"prompt": "a", "temperature": -1.0}, "`temperature` must be 0 or at least 0.0001"),
    "nan penalty": ({"prompt": "a", "repetition_penalty": float("nan")}, "`repetition_penalty` must be at least 0.01"),
    "tiny temperature": ({"prompt": "a", "temperature": 1e-40}, "`temperature` must be 0 or at least 0.0001"),
    "tiny penalty": ({"prompt": "a", "repetition_penalty": 1e-38}, "`repetition_penalty` must be at least 0.01"),
    "one file": ({"prompt_file": b"a", "output_file": "p.jsonl"}, "`output_file` is the `prompt_file`"),
    "min_p": ({"prompt": "a", "min_p": 1.5}, "`min_p` must be at least 0 and at most 1"),
    "greedy min_p": ({"prompt": "a", "temperature": 0.0, "min_p": 0.5}, "so `min_p` cannot act"),
    "empty stop": ({"prompt": "a", "stop": [""]}, "`stop` must not be empty"),
    "streamed samples": ({"prompt": "a", "stream": True, "num_samples": 2}, "`stream` prints one text"),
    "logprobs": ({"prompt": "a", "logprobs": 1}, "need an `output_file`"),
    "two quantizations": ({"prompt": "a", "cpu_weights": "int8", "quantize": "bnb.nf4"}, "`cpu_weights` cannot be combined"),
    "long prompt": ({"prompt": "a b c " * 300}, "exceed the context of 256"),
    "many tokens": ({"prompt": "a", "max_new_tokens": 256}, "exceed the context of 256"),
    "bf16 packed": ({"prompt": "a", "cpu_weights": "fp16", "precision": "bf16-true"}, "for a CPU in 32-true"),
    "no file": ({"prompt_file": "none.jsonl"}, "none.jsonl does not exist"),
    "not utf-8": ({"prompt_file": b"\xff\xfe"}, "is not UTF-8"),
    "no json": ({"prompt_file": b'"a"\nb\n'}, "p.jsonl:2 is not valid JSON: Expecting value"),
    "nested deeply": ({"prompt_file": b'"a"\n' + b"[" * 10**5}, "p.jsonl:2 is not valid JSON: it is nested too deeply"),
    "a number": ({"prompt_file": b"5\n"}, "p.jsonl:1 must be a string or an object, found 5. Write each prompt"),
    "no prompts": ({"prompt_file": b"\n"}, "has no prompts"),
    "no text": (
        {"prompt_file": b'"a"\n{"instruction": "b"}\n'},
        "prompt 2: the record has no string as its 'prompt'",
    ),
    "half a pair": ({"prompt_file": b'"\\ud800"\n'}, "p.jsonl:1 is not valid JSON: it has an unpaired surrogate"),
    "one is long": ({"prompt_file": b'"a"\n"' + b"a b " * 300 + b'"\n'}, "prompt 2: .*exceed the context of 256"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_done_is_refused(run, checkpoint, tmp_path, mistake):
    options, message = MISTAKES[mistake]
    if isinstance(options.get("prompt_file"), bytes):
        (tmp_path / "p.jsonl").write_bytes(options["prompt_file"])
        options = {**options, "prompt_file": tmp_path / "p.jsonl"}
    elif "prompt_file" in options:
        options = {**options, "prompt_file": tmp_path / options["prompt_file"]}
    if "output_file" in options:
        options["output_file"] = tmp_path / "x" / ".." / options["output_file"]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(checkpoint_dir=checkpoint, **options)


def test_an_empty_prompt_needs_a_bos(run, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "m")
    (folder / "tokenizer_config.json").write_text("{}")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token_id": None}))
    with pytest.raises(ValueError, match="the prompt is empty and this tokenizer has no BOS"):
        run(checkpoint_dir=folder, prompt="")
    assert run(checkpoint_dir=checkpoint, prompt="").out
