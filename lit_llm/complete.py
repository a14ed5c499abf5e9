"""The generate scripts: load, complete, print the text on stdout and the speed on stderr."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lit_llm.adapters import read_adapter
from lit_llm.args.generate import AdapterGenerateArgs, FullGenerateArgs, GenerateArgs, ModelArgs
from lit_llm.checkpoint import load, resolve_device
from lit_llm.cli import DEMO
from lit_llm.files import read_json_object
from lit_llm.generate import Completion, encode_prompt, generate
from lit_llm.memory import peak_memory_gb
from lit_llm.model import GPT
from lit_llm.prompts import end_ids, prompt_ids, question, stop_strings
from lit_llm.tokenizer import Tokenizer


def complete(args: GenerateArgs) -> None:
    """Print the prompt and what follows it, once per sample."""
    prompt = _prompt(args)
    model, tokenizer = _load(args, args.checkpoint_dir or DEMO / "checkpoint", None)
    ids = encode_prompt(tokenizer, prompt)
    for completion in _timed(args, model, tokenizer, ids):
        print(tokenizer.decode(ids + completion.ids))


def answer(args: AdapterGenerateArgs) -> None:
    """Print the answer to an instruction, asked in the style that the adapter was trained with, once per sample."""
    prompt = _prompt(args)
    about = read_adapter(args.adapter_dir)
    model, tokenizer = _load(args, args.checkpoint_dir or Path(about["base_checkpoint_dir"]), args.adapter_dir)
    ids = prompt_ids(about["prompt_style"], tokenizer, question(prompt, args.input))
    for completion in _timed(args, model, tokenizer, ids, about["prompt_style"]):
        print(completion.text)


def answer_finetuned(args: FullGenerateArgs) -> None:
    """Print the answer of a fully finetuned model to an instruction, asked in the style of its finetuning."""
    prompt = _prompt(args)
    path = args.checkpoint_dir / "finetuned.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{args.checkpoint_dir} is not a result of finetune/full.py. Use generate/base.py for a plain model"
        )
    model, tokenizer = _load(args, args.checkpoint_dir, None)
    style = read_json_object(path)["prompt_style"]
    ids = prompt_ids(style, tokenizer, question(prompt, args.input))
    for completion in _timed(args, model, tokenizer, ids, style):
        print(completion.text)


def _prompt(args: GenerateArgs) -> str:
    if args.prompt_file is None:
        assert args.prompt is not None
        return args.prompt
    try:
        return args.prompt_file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{args.prompt_file} is not UTF-8 ({error.reason} at byte {error.start})") from error


def _load(args: GenerateArgs, checkpoint_dir: Path, adapter_dir: Path | None) -> tuple[GPT, Tokenizer]:
    device = resolve_device(args.accelerator)
    start = time.perf_counter()
    loaded = load(checkpoint_dir, adapter_dir, str(device), args.precision, args.quantize)
    print(f"loaded {checkpoint_dir} in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return loaded


def _timed(args: GenerateArgs, model: GPT, tokenizer: Tokenizer, ids: list[int], style: str | None = None) -> list[Completion]:
    stop: Sequence[str] = ()
    if style is not None:
        stop, tokenizer.eos_ids = stop_strings(style, tokenizer), end_ids(style, tokenizer)
    start = time.perf_counter()
    completions = generate(
        model, tokenizer, [ids] * args.num_samples, max_new_tokens=args.max_new_tokens, temperature=args.temperature,
        top_k=args.top_k, top_p=args.top_p, seed=args.seed, stop=stop,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    n_new = sum(len(c.ids) + c.ended for c in completions)
    memory = peak_memory_gb(model.wte.weight.device)
    print(f"{n_new} tokens in {seconds:.2f} s, {n_new / seconds:.1f} tokens/s, {memory:.2f} GB at most", file=sys.stderr)
    return completions


def load_args(args: ModelArgs) -> tuple[GPT, Tokenizer, Path]:
    """The model that the options name, its tokenizer and its folder."""
    checkpoint_dir = args.checkpoint_dir
    if checkpoint_dir is None and args.adapter_dir is not None:
        checkpoint_dir = Path(read_adapter(args.adapter_dir)["base_checkpoint_dir"])
    checkpoint_dir = checkpoint_dir or DEMO / "checkpoint"
    device = resolve_device(args.accelerator)
    model, tokenizer = load(checkpoint_dir, args.adapter_dir, str(device), args.precision, args.quantize)
    print(f"loaded {checkpoint_dir} on {device}", file=sys.stderr)
    return model, tokenizer, checkpoint_dir
