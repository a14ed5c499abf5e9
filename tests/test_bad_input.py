"""What a user can do wrong: one `error:` line that says what to do, exit code 2, no traceback, nothing lost or left behind."""

import json
import os
import runpy
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file
from tiny import make_checkpoint

from lit_llm.checkpoint.adapters import write_adapter
from lit_llm.checkpoint.convert import convert
from lit_llm.checkpoint.load_model import load_model
from lit_llm.methods.lora import LoRA


@pytest.fixture
def run_script(monkeypatch, capsys, tmp_path):
    """Run a script in this process and return its exit code and stderr."""

    def run(script, *arguments, cwd=tmp_path):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.chdir(cwd)
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        return stopped.value.code, capsys.readouterr().err

    return run


@pytest.fixture
def base(tmp_path, checkpoint):
    """A checkpoint to damage."""
    return shutil.copytree(checkpoint, tmp_path / "base")


@pytest.fixture
def data(tmp_path, data_dir):
    """A data folder to damage."""
    return shutil.copytree(data_dir, tmp_path / "rows")


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def append(path, line):
    with path.open("ab") as file:
        file.write(line + b"\n")


MISTAKES = {
    "folder missing": (lambda b, d: shutil.rmtree(b), "does not exist. Download a checkpoint"),
    "folder is a file": (lambda b, d: (shutil.rmtree(b), b.write_text("x")), "is a file, not a folder"),
    "no config": (lambda b, d: (b / "config.json").unlink(), "not a checkpoint folder"),
    "config is not JSON": (lambda b, d: (b / "config.json").write_text("{"), "config.json is not valid JSON"),
    "unknown model_type": (lambda b, d: edit_json(b / "config.json", model_type="bert"), "'bert' is not supported"),
    "unknown activation": (
        lambda b, d: edit_json(b / "config.json", hidden_act="snake"),
        "hidden_act = 'snake' is not supported",
    ),
    "unknown rope type": (
        lambda b, d: edit_json(b / "config.json", rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}),
        "rope_scaling type 'spiral' is not supported",
    ),
    "no weights": (lambda b, d: (b / "model.safetensors").unlink(), "has no weights. Download them first"),
    "truncated weights": (lambda b, d: truncate(b / "model.safetensors"), "is damaged or incomplete"),
    "tensor missing": (lambda b, d: edit_weights(b, lambda t: t.pop("model.norm.weight")), "among them model.norm.weight"),
    "tensor of wrong shape": (
        lambda b, d: edit_weights(b, lambda t: t.update({"model.norm.weight": torch.ones(7)})),
        "norm.weight has shape [7], its config says [32]",
    ),
    "unexpected tensor": (lambda b, d: edit_weights(b, lambda t: t.update(extra=torch.ones(7))), "unexpected tensor extra"),
    "no tokenizer": (lambda b, d: (b / "tokenizer.json").unlink(), "Copy the tokenizer files"),
    "broken tokenizer": (lambda b, d: truncate(b / "tokenizer.json"), "is not a tokenizer"),
    "no data": (lambda b, d: shutil.rmtree(d), "train.jsonl does not exist"),
    "empty data": (lambda b, d: (d / "train.jsonl").write_text(""), "is empty: there is nothing to train on"),
    "record without output": (
        lambda b, d: append(d / "train.jsonl", b'{"instruction": "a"}'),
        "train.jsonl:21: the record has no",
    ),
    "not UTF-8": (lambda b, d: append(d / "train.jsonl", b'{"instruction": "\xff"}'), "train.jsonl:21: not UTF-8"),
    "not JSON": (lambda b, d: append(d / "train.jsonl", b'{"instruction": '), "train.jsonl:21:16: not JSON"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_damaged_folder_is_told_in_one_line(run_script, base, data, tmp_path, mistake):
    damage, message = MISTAKES[mistake]
    damage(base, data)
    code, stderr = run_script("finetune/lora.py", "--checkpoint_dir", base, "--data_dir", data, "--out_dir", tmp_path / "out")
    assert_told(code, stderr, message)
    assert not (tmp_path / "out").exists()


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


OUTPUTS = {
    "the base": ("base", "is {tmp}/base, which is read"),
    "the base, by another way": ("link/../base/", "is {tmp}/base, which is read"),
    "the adapter": ("run/final", "is {tmp}/run/final, which is read"),
    "the run": ("run", "holds {tmp}/run/final, which is read"),
    "a folder with all in it": (".", "holds {tmp}/"),
    "a link to a folder with files": ("link", "already holds files. Choose another --output_dir, or remove it"),
    "a file": ("mine/notes.txt", "is a file"),
    "the empty folder that it runs in": ("empty", "is the current folder. Choose a new one"),
}


@pytest.mark.parametrize("how", ["merge", "hf", "peft"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_folder_that_is_in_use_is_no_output(how, output, run_script, base, tmp_path, monkeypatch):
    """Base, run and a user's folder are as before, whatever --output_dir names."""
    name, message = OUTPUTS[output]
    model, method = load_model(base), LoRA()
    method.attach(model)
    for folder in ("run/final", "mine", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to("mine")
    write_adapter(tmp_path / "run" / "final", model, method, base, "alpaca")
    convert(base)
    before = contents(tmp_path)
    script = "scripts/merge_lora.py" if how == "merge" else "scripts/convert_lit_checkpoint.py"
    adapter = () if how == "hf" else ("--adapter_dir", tmp_path / "run" / "final")
    if how == "hf" and name.startswith("run"):
        message = "already holds files"
    cwd = tmp_path / "empty" if name == "empty" else tmp_path
    given = "." if name == "empty" else name
    command = (script, "--checkpoint_dir", base, *adapter, "--output_dir", given)
    assert_told(*run_script(*command, cwd=cwd), message.format(tmp=tmp_path))
    assert contents(tmp_path) == before


def test_results_and_data_of_others_are_not_replaced(script, run_script, base, data, tmp_path):
    """The folders that training, preparing data and the demo's script write into."""
    (tmp_path / "rows.json").write_text(json.dumps([{"instruction": f"q{i}", "output": "a"} for i in range(30)]))
    prepare = ("scripts/prepare_json.py", "--json_path", "rows.json", "--destination_path", "prepared")
    script(*prepare)
    for folder in ("mine/final", "mine/data"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "notes.txt").write_text("mine")
    (tmp_path / "prepared" / "test.jsonl").write_text("mine")
    before = contents(tmp_path)
    train = ("finetune/lora.py", "--checkpoint_dir", base, "--data_dir", data, "--out_dir", "mine", "--resume=auto")
    assert_told(*run_script(*train), "mine is not the folder of a run: it has no args.yaml")
    assert_told(*run_script(*prepare, "--seed=1"), "would be lost: test.jsonl")
    assert_told(*run_script("scripts/make_demo.py", "--output_dir=mine"), "mine holds folders that are not a demo")
    assert contents(tmp_path) == before


FLAGS = {
    "unknown flag": (["--train.epocs=3"], "unknown flag --train.epocs; did you mean --train.epochs?"),
    "value without a flag": (["rows.csv"], "unexpected argument rows.csv"),
    "abbreviated flag": (["--check=x"], "unknown flag --check"),
    "negative number": (["--train.epochs=-1"], "--train.epochs must be above 0, found -1"),
    "not a number": (["--train.learning_rate=fast"], "--train.learning_rate takes a number"),
    "NaN": (["--train.learning_rate=nan"], "--train.learning_rate takes a number; found nan"),
    "infinite rate": (["--config=infinite.yaml"], "--train.learning_rate must be finite, found inf"),
    "unknown quantization": (["--quantize=bnb.nf5"], "--quantize takes bnb.nf4, bnb.nf4-dq"),
    "paged state without CUDA": (["--train.optimizer=paged_adamw8bit", "--accelerator=cpu"], "is on cpu. Use adamw8bit"),
    "unknown optimizer": (["--train.optimizer=adamw4bit"], "--train.optimizer takes adamw, adamw8bit"),
    "half of a pair": (["--data_dir=x"], "--data_dir needs --checkpoint_dir"),
    "int8 in parts": (["--devices=2", "--strategy=fsdp", "--quantize=bnb.int8"], "Use --strategy ddp, or bnb.nf4"),
    "16-true": (["--precision=16-true"], "overflows in training"),
    "dropout of 1": (["--lora.dropout=1"], "--lora.dropout must be at least 0 and below 1"),
    "unknown target": (["--lora.targets=qq"], "target 'qq' matches no linear"),
    "unknown style": (["--prompt_style=alpacca"], "prompt style 'alpacca' is not known"),
    "no place for an example": (["--max_seq_length=3"], "are longer than 3 tokens"),
    "no such save": (["--resume=nowhere"], "--resume nowhere is not a save"),
}


@pytest.mark.parametrize("mistake", FLAGS)
def test_a_wrong_option_is_told_in_one_line(run_script, base, data, tmp_path, mistake):
    flags, message = FLAGS[mistake]
    (tmp_path / "infinite.yaml").write_text("train:\n  learning_rate: .inf\n")
    folders = [] if mistake == "half of a pair" else ["--checkpoint_dir", base, "--data_dir", data]
    code, stderr = run_script("finetune/lora.py", *folders, "--out_dir", tmp_path / "out", *flags)
    assert_told(code, stderr, message)
    assert not (tmp_path / "out").exists()


def assert_told(code, stderr, message):
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert code == 2, stderr
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in stderr


def test_mistakes_in_several_groups_are_told_together(run_script):
    code, stderr = run_script("finetune/lora.py", "--train.epochs=0", "--lora.r=0", "--eval.interval=0")
    assert code == 2
    assert [line.split()[1] for line in stderr.splitlines()] == ["--train.epochs", "--eval.interval", "--lora.r"]


def test_a_wrong_group_does_not_hide_what_else_is_wrong(run_script):
    code, stderr = run_script("finetune/dpo.py", "--train.epochs=0", "--mask_prompt=false")
    assert code == 2
    assert [line.split()[1] for line in stderr.splitlines()] == ["--train.epochs", "--mask_prompt"]


CONFIGS = {
    "typo in a group": ("train: {max_step: 1}", "unknown flag --train.max_step; did you mean --train.max_steps?"),
    "empty group": ("train: null", "--train is a group of options, as --train.NAME, and has no value of its own; found null"),
    "number as group": ("lora: 3", "--lora is a group of options, as --lora.NAME, and has no value of its own; found 3"),
    "text as group": ("train: fast", "--train is a group of options, as --train.NAME, and has no value of its own; found fast"),
    "no file": (None, "args.yaml does not exist"),
    "binary": (bytes(range(128, 256)), "--config args.yaml is not a text file in UTF-8 (invalid start byte at byte 0)"),
    "UTF-16": ("seed: 1".encode("utf-16"), "--config args.yaml is not a text file in UTF-8"),
    "null characters": ("seed: \0", "--config args.yaml is not valid YAML"),
    "not YAML": ("seed: [1", "--config args.yaml is not valid YAML"),
    "nested deeply": ("seed: " + "[" * 5000 + "]" * 5000, "--config args.yaml is not valid YAML: it is nested too deeply"),
    "a list": ("- seed", "--config args.yaml must contain options, like `seed: 1`; found list"),
    "empty": ("", "--config args.yaml must contain options"),
    "a number as key": ("train: {3: 4}", "--config args.yaml has the key 3, which is not the name of an option"),
    "itself": ("train: &a [*a]", "--config args.yaml has more than 10,000 values, or aliases that repeat them"),
    "an object of Python": ("seed: !!python/object/apply:os.getpid []", "--config args.yaml is not valid YAML"),
}


@pytest.mark.parametrize("mistake", CONFIGS)
def test_a_mistake_in_a_config_file_is_told_in_one_line(run_script, tmp_path, mistake):
    content, message = CONFIGS[mistake]
    if content is not None:
        (tmp_path / "args.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    code, stderr = run_script("finetune/lora.py", "--config=args.yaml", "--checkpoint_dir=x", "--data_dir=y")
    assert_told(code, stderr, message)


def test_a_config_file_may_begin_with_a_bom(run_script, tmp_path):
    (tmp_path / "args.yaml").write_text("train: {epochs: 0}", encoding="utf-8-sig")
    code, stderr = run_script("finetune/lora.py", "--config=args.yaml", "--checkpoint_dir=x", "--data_dir=y")
    assert_told(code, stderr, "--train.epochs must be above 0")


LINKED = {
    "checkpoint_dir": ("finetune/lora.py", "--checkpoint_dir=loop", "--data_dir=y"),
    "data_dir": ("finetune/lora.py", "--checkpoint_dir=x", "--data_dir=loop"),
    "out_dir": ("finetune/lora.py", "--out_dir=loop/run"),
    "adapter_dir": ("scripts/merge_lora.py", "--checkpoint_dir=x", "--adapter_dir=[x,loop]", "--output_dir=y"),
    "output_file": ("generate/base.py", "--prompt=x", "--output_file=loop"),
    "csv_path": ("scripts/prepare_csv.py", "--csv_path=loop"),
}


@pytest.mark.parametrize("option", LINKED)
def test_a_loop_of_symbolic_links_is_no_path(run_script, tmp_path, option):
    (tmp_path / "loop").symlink_to("loop")
    code, stderr = run_script(*LINKED[option])
    path = "loop/run" if option == "out_dir" else "loop"
    assert_told(code, stderr, f"--{option} {path} is not a path: Too many levels of symbolic links")


DEVICES = {
    "finetune": ("finetune/lora.py", "--out_dir=run"),
    "generate": ("generate/base.py", "--prompt=x"),
    "chat": ("generate/chat.py",),
    "serve": ("generate/serve.py",),
    "perplexity": ("eval/perplexity.py", "--data_file=rows.txt"),
    "harness": ("eval/lm_eval_harness.py", "--tasks=hellaswag"),
    "compare": ("eval/compare.py", "--models=[base,base]", "--tasks=hellaswag"),
}


@pytest.mark.parametrize("accelerator", ["cuda", "mps"])
@pytest.mark.parametrize("name", DEVICES)
def test_a_device_that_is_not_there_is_told(run_script, tmp_path, base, name, accelerator, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    (tmp_path / "rows.txt").write_text("A text.")
    script, *options = DEVICES[name]
    if name not in ("finetune", "compare"):
        options.append("--checkpoint_dir=base")
    code, stderr = run_script(script, *options, f"--accelerator={accelerator}")
    assert_told(code, stderr, f"the device {accelerator} is not available here: PyTorch {torch.__version__} finds no")
    assert "--accelerator auto or cpu" in stderr
    assert not (tmp_path / "run").exists()


def test_benchmark_options_without_effect_are_refused(run_script):
    code, stderr = run_script("eval/benchmark.py", "--check=load_memory", "--repetitions=3")
    assert_told(code, stderr, "--repetitions has no effect on --check load_memory")


CSV = {
    "missing columns": (b"question,answer\na,b\n", "the columns instruction, output are missing; found 'question', 'answer'"),
    "other names": (b"question,answer\na,b\n", "python scripts/prepare_csv.py --csv_path"),
    "wrong delimiter": (b"instruction:output\na:b\n", "Is the delimiter a comma, semicolon, tab or vertical bar?"),
    "not UTF-8": (b"instruction,output\na,\xff\n", "is not UTF-8"),
    "empty": (b"", "the columns of a header are missing; found none"),
    "only empty answers": (b"instruction,output\na,\nb,\n", "nothing to train on is left: 'output' is empty (2)"),
}


@pytest.mark.parametrize("mistake", CSV)
def test_a_bad_csv_is_told_and_an_earlier_data_folder_stays(run_script, tmp_path, mistake):
    content, message = CSV[mistake]
    (tmp_path / "good.csv").write_text("instruction,output\na,b\nc,d\n")
    (tmp_path / "bad.csv").write_bytes(content)
    target = tmp_path / "data"
    runpy_argv = ["--destination_path", target, "--val_split_fraction=0"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    good = [sys.executable, REPOSITORY / "scripts/prepare_csv.py", "--csv_path", tmp_path / "good.csv", *runpy_argv]
    subprocess.run(good, check=True, env=environment, capture_output=True)
    before = (target / "train.jsonl").read_bytes()
    code, stderr = run_script("scripts/prepare_csv.py", "--csv_path", tmp_path / "bad.csv", *runpy_argv)
    assert_told(code, stderr, message)
    assert (target / "train.jsonl").read_bytes() == before


def test_plain_text_is_not_taken_for_rows(run_script, base, tmp_path):
    (tmp_path / "notes.txt").write_text("Some notes.")
    code, stderr = run_script("finetune/lora.py", "--checkpoint_dir", base, "--data_dir", "notes.txt")
    assert_told(code, stderr, "notes.txt is plain text. Prepare it first: python scripts/prepare_text.py --text_path notes.txt")


def test_an_adapter_of_another_base_is_refused(run_script, base, data, tmp_path, script):
    options = ["--train.max_steps=1", "--eval.samples=0", "--out_dir", tmp_path / "run"]
    script("finetune/lora.py", "--checkpoint_dir", base, "--data_dir", data, *options)
    other = make_checkpoint(tmp_path / "other", seed=9)
    adapter = ["--adapter_dir", tmp_path / "run" / "final", "--prompt=x"]
    code, stderr = run_script("generate/lora.py", "--checkpoint_dir", other, *adapter)
    assert_told(code, stderr, "was trained on another base")
    truncate(tmp_path / "run" / "final" / "adapter.safetensors")
    code, stderr = run_script("generate/lora.py", *adapter)
    assert_told(code, stderr, "is missing or damaged")
    code, stderr = run_script("generate/lora.py", "--adapter_dir", tmp_path / "nowhere", "--prompt=x")
    assert_told(code, stderr, "has no adapter")


GENERATE = {
    "no prompt": ([], "give either --prompt or --prompt_file"),
    "two prompts": (["--prompt=x", "--prompt_file=y"], "give either --prompt or --prompt_file"),
    "negative temperature": (["--prompt=x", "--temperature=-1"], "--temperature must be 0 or at least 0.0001"),
    "NaN temperature": (["--prompt=x", "--temperature=nan"], "--temperature takes a number; found nan"),
    "top_p above 1": (["--prompt=x", "--top_p=1.5"], "--top_p must be above 0 and at most 1"),
    "top_k that cannot act": (["--prompt=x", "--temperature=0", "--top_k=5"], "cannot act"),
    "beyond the context": (["--prompt=x", "--max_new_tokens=9999"], "exceed the context of 256"),
    "no such file": (["--prompt_file=nowhere"], "--prompt_file nowhere does not exist"),
}


@pytest.mark.parametrize("mistake", GENERATE)
def test_a_wrong_request_is_told_in_one_line(run_script, base, mistake):
    flags, message = GENERATE[mistake]
    code, stderr = run_script("generate/base.py", "--checkpoint_dir", base, *flags)
    assert_told(code, stderr, message)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount]).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield mount
    subprocess.run(["umount", mount], check=True)


def test_a_full_disk_ends_the_run_and_keeps_the_earlier_save(base, data, script, small_disk):
    """Saves fill the disk until one fails; after making room the run goes on from the newest complete one."""
    out_dir = small_disk / "run"
    command = [
        "finetune/lora.py", "--checkpoint_dir", base, "--data_dir", data, "--out_dir", out_dir, "--eval.samples=0",
        "--train.save_interval=1", "--train.epochs=3", "--train.global_batch_size=2", "--lora.r=32",
        "--lora.targets=all-linear",
    ]  # fmt: skip
    failed = script(*command, check=False)
    assert failed.returncode == 2, failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("error: no space left on the disk")
    assert "Traceback" not in failed.stderr
    saves = sorted(out_dir.glob("step-*"))
    assert saves
    assert all((save / "state.json").is_file() for save in saves)
    assert not list(out_dir.glob(".new-*"))
    for save in saves[:-1]:
        shutil.rmtree(save)
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    done = script(*command, "--resume=auto")
    assert f"resuming from {saves[-1]}" in done.stderr
    assert (out_dir / "final" / "adapter.safetensors").is_file()
