"""The generate scripts: load, complete, write the texts to stdout or a file and the speed to stderr."""

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lit_llm.args.base import InferenceStrategy
from lit_llm.args.generate import AdapterGenerateArgs, FullGenerateArgs, GenerateArgs, ModelArgs
from lit_llm.checkpoint.adapters import read_adapter
from lit_llm.checkpoint.load import load
from lit_llm.checkpoint.read import expected_shapes, read_config
from lit_llm.cli import DEMO
from lit_llm.decode import Batch, Row, continue_rows
from lit_llm.devices.layer_placement import choose_strategy
from lit_llm.devices.tensor_parallel import join, split
from lit_llm.files import read_json_object
from lit_llm.generate import check_context, encode_prompt
from lit_llm.memory import available_bytes, peak_memory_gb
from lit_llm.methods.lora import merge
from lit_llm.model.config import Config
from lit_llm.model.cpu_linear import Layout, lay_out
from lit_llm.model.device import resolve_device, weights_dtype
from lit_llm.model.gpt import GPT
from lit_llm.progress import Progress
from lit_llm.prompt_file import AnswerFile, Prompt, as_messages, as_text, read_lines, read_text
from lit_llm.ranks import naming_lost_ranks
from lit_llm.sampling import Sampling
from lit_llm.speculative import check_draft, continue_drafted
from lit_llm.text.conversation import end_ids, prompt_ids, stop_strings
from lit_llm.text.stream import candidate_text, token_texts
from lit_llm.text.tokenizer import Tokenizer


def complete(args: GenerateArgs) -> None:
    """Print each prompt and what follows it, once per sample."""
    prompts = _prompts(args)
    model, tokenizer = _load(args, args.checkpoint_dir or DEMO / "checkpoint", None)
    _write(args, prompts, _encode(args, model, prompts, lambda p: encode_prompt(tokenizer, as_text(p))), model, tokenizer, None)


def answer(args: AdapterGenerateArgs) -> None:
    """Print the answer to each instruction, asked in the style that the adapter was trained with, once per sample."""
    prompts = _prompts(args)
    about = read_adapter(args.adapter_dir)
    model, tokenizer = _load(args, args.checkpoint_dir or Path(about["base_checkpoint_dir"]), args.adapter_dir)
    _answer(args, prompts, model, tokenizer, about["prompt_style"])


def answer_finetuned(args: FullGenerateArgs) -> None:
    """Print the answer of a fully finetuned or merged model to each instruction, asked in the style of its finetuning."""
    prompts = _prompts(args)
    path = args.checkpoint_dir / "finetuned.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{args.checkpoint_dir} has no finetuned.json, which finetune/full.py and scripts/merge_lora.py write. Use "
            "generate/base.py for a plain model, generate/lora.py --adapter_dir for an adapter"
        )
    model, tokenizer = _load(args, args.checkpoint_dir, None)
    _answer(args, prompts, model, tokenizer, read_json_object(path)["prompt_style"])


def _answer(
    args: AdapterGenerateArgs | FullGenerateArgs, prompts: Sequence[Prompt], model: GPT, tokenizer: Tokenizer, style: str
) -> None:
    tokenizer.eos_ids = end_ids(style, tokenizer)
    encoded = _encode(args, model, prompts, lambda p: prompt_ids(style, tokenizer, as_messages(p, args.input)))
    _write(args, prompts, encoded, model, tokenizer, style)


def _prompts(args: GenerateArgs) -> Sequence[Prompt]:
    if args.prompt_file is None:
        assert args.prompt is not None
        return [args.prompt]
    return read_lines(args.prompt_file) if args.has_many_prompts() else [read_text(args.prompt_file)]


def _encode(
    args: GenerateArgs, model: GPT, prompts: Sequence[Prompt], encode: Callable[[Prompt], list[int]]
) -> list[list[int]]:
    """Token ids of each prompt. Raises ValueError, with the number of the prompt, if one cannot be asked."""
    encoded = []
    for number, prompt in enumerate(prompts, 1):
        try:
            json.dumps(prompt, ensure_ascii=False).encode()  # half of a surrogate pair is no text: a ValueError
            encoded.append(encode(prompt))
            check_context(model, len(encoded[-1]), args.max_new_tokens)
        except ValueError as error:
            raise ValueError(f"{args.prompt_file}, prompt {number}: {error}" if args.has_many_prompts() else error) from error
    return encoded


@naming_lost_ranks("Start again")
def _write(
    args: GenerateArgs,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    model: GPT,
    tokenizer: Tokenizer,
    style: str | None,
) -> None:
    """Answer the prompts in a style, or without one continue them. What is done is written in the order of the prompts."""
    stop = (*args.stop, *(() if style is None else stop_strings(style, tokenizer)))
    n, total = args.num_samples, len(prompts) * args.num_samples
    draft = None if args.draft_checkpoint_dir is None else _load(args, args.draft_checkpoint_dir, None)
    file, keys = None, []
    if args.output_file is not None:
        keys = _keys(args, model, None if draft is None else draft[0], encoded)
        file = AnswerFile(args.output_file, keys)
    first = 0 if file is None else file.n_done
    if first == total:
        print(f"{args.output_file} holds all {total} answers already", file=sys.stderr)
        return
    as_lines = file is not None or args.has_many_prompts()
    before = "" if as_lines or style is not None else as_text(prompts[0])  # tokens lack what special tokens are written as
    progress = Progress("answers", total, first) if as_lines else None
    places, finished = dict[Row, int](), dict[int, Row]()

    def begin() -> Iterator[Row]:
        for i in range(first, total):
            sampling = Sampling(
                args.temperature, args.top_k, args.top_p, args.min_p, args.repetition_penalty, seed=args.seed + i
            )
            row = Row(tokenizer, encoded[i // n], args.max_new_tokens, sampling, stop, style is None, args.logprobs)
            places[row] = i
            yield row

    def tell(i: int, row: Row) -> None:
        if as_lines:
            line = {"row": i // n, "sample": i % n, "prompt": prompts[i // n], **_outcome(row, tokenizer, style is None)}
            if file is None:
                print(json.dumps(line, ensure_ascii=False), flush=True)
            else:
                file.write({**line, "key": keys[i]})
        elif args.stream:
            print()
        else:
            print(before + row.stream.text)

    continued = _continue(args, model, tokenizer, draft, begin(), min(args.batch_size, total - first), max(map(len, encoded)))
    start, n_new, upcoming = time.perf_counter(), 0, first
    if args.stream:
        print(before, end="", flush=True)
    for row, text in continued:
        if args.stream:
            print(text, end="", flush=True)
        if row.done:
            n_new += row.n_new
            finished[places.pop(row)] = row
            while upcoming in finished:
                tell(upcoming, finished.pop(upcoming))
                upcoming += 1
                if progress is not None:
                    progress.update()
    seconds, memory = time.perf_counter() - start, max(map(peak_memory_gb, model.devices))
    for what in (progress, file):
        if what is not None:
            what.close()
    print(f"{n_new} tokens in {seconds:.2f} s, {n_new / seconds:.1f} tokens/s, {memory:.2f} GB at most", file=sys.stderr)


def _continue(
    args: GenerateArgs,
    model: GPT,
    tokenizer: Tokenizer,
    draft: tuple[GPT, Tokenizer] | None,
    rows: Iterable[Row],
    size: int,
    longest: int,
) -> Iterator[tuple[Row, str]]:
    """As `continue_rows`, for prompts of so many tokens at most, side by side or with a draft."""
    if draft is None:
        batch = Batch[Row](model, size, longest + args.max_new_tokens, args.kv_cache == "int8", args.compile)
        return continue_rows(batch, rows)
    check_draft(model, tokenizer, *draft)
    check_context(draft[0], longest, args.max_new_tokens)
    return ((row, text) for row in rows for text in continue_drafted(model, draft[0], row))


def _outcome(row: Row, tokenizer: Tokenizer, continues: bool) -> dict[str, Any]:
    """What a row came to, for a line of JSON. The last tokens may be those of a stop sequence, which the text lacks."""
    finish = "stop" if row.ended else "length"
    found: dict[str, Any] = {"text": row.stream.text, "finish": finish, "n_tokens": row.n_new}
    if row.n_top is None:
        return found
    text_of, prompt, ids = candidate_text(tokenizer), row.ids[: row.n_prompt], row.ids[row.n_prompt :]
    texts = token_texts(tokenizer, ids, prompt if continues else ())
    found["tokens"] = [
        {
            "id": token, "text": text, "logprob": score.log_prob,
            "top": [{"id": i, "text": text_of(i), "logprob": log_prob} for i, log_prob in score.top.items()],
        }
        for token, text, score in zip(ids, texts, row.scores, strict=True)
    ]  # fmt: skip
    return found


def _keys(args: GenerateArgs, model: GPT, draft: GPT | None, encoded: Sequence[list[int]]) -> list[str]:
    """For each answer to each prompt, what stands for all that it follows from."""
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "logprobs", "precision",
             "quantize", "cpu_weights", "kv_cache")  # fmt: skip
    folder: Path | None = getattr(args, "adapter_dir", None)
    files = [] if folder is None else [folder / "adapter.json", folder / "adapter.safetensors"]
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    models = [model.fingerprint, None if draft is None else draft.fingerprint]
    told = [*models, *sums, getattr(args, "merge", False), *[getattr(args, name) for name in names]]
    everything = ([ids, *told] for ids in encoded for _ in range(args.num_samples))
    return [hashlib.sha256(json.dumps([args.seed + i, *x]).encode()).hexdigest()[:16] for i, x in enumerate(everything)]


def load_args(args: ModelArgs) -> tuple[GPT, Tokenizer, Path]:
    """The model that the options name, its tokenizer and its folder."""
    checkpoint_dir = args.checkpoint_dir
    if checkpoint_dir is None and args.adapter_dir is not None:
        checkpoint_dir = Path(read_adapter(args.adapter_dir)["base_checkpoint_dir"])
    checkpoint_dir = checkpoint_dir or DEMO / "checkpoint"
    return *_load(args, checkpoint_dir, args.adapter_dir), checkpoint_dir


def _load(args: GenerateArgs | ModelArgs, checkpoint_dir: Path, adapter_dir: Path | None) -> tuple[GPT, Tokenizer]:
    """A model whose weights are laid out for decoding on its device, and its tokenizer."""
    device, start, merging = resolve_device(args.accelerator), time.perf_counter(), getattr(args, "merge", False)
    if merging and adapter_dir is not None and (method := read_adapter(adapter_dir)["method"]) != "lora":
        raise ValueError(f"--merge is for LoRA; {adapter_dir} is of {method}, which has no place in the weights. Leave it out")
    strategy, devices = None, [device]
    if args.devices > 1:
        asked: InferenceStrategy = getattr(args, "strategy", "layers")
        unmerged, config = adapter_dir is not None and not merging, read_config(checkpoint_dir)
        strategy, why = choose_strategy(asked, config, device, args.devices, args.quantize, unmerged)
        print(f"strategy: {why}", file=sys.stderr)
    if strategy == "tensor":
        devices = [device := join(args.devices, device)]
    elif strategy == "layers":
        devices = [torch.device(device.type, i) for i in range(args.devices)]
    names = [str(device) for device in devices]
    layout, at_once = _layout(args, read_config(checkpoint_dir), device) if strategy is None else None, not merging
    model, tokenizer = load(
        checkpoint_dir, adapter_dir, names, args.precision, args.quantize, strategy == "tensor", layout if at_once else None
    )
    if merging:
        merge(model)
    if strategy == "tensor":
        split(model, device)
    elif layout is not None and not at_once:
        lay_out(model, layout)
    print(f"loaded {checkpoint_dir} on {', '.join(names)} in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return model, tokenizer


def _layout(args: GenerateArgs | ModelArgs, config: Config, device: torch.device) -> Layout | None:
    """What was asked for; else, for float32 on a CPU, by columns, if what lies in a mapped file can be copied out of it."""
    if args.cpu_weights is not None or device.type != "cpu" or weights_dtype(args.precision, device) != torch.float32:
        return args.cpu_weights
    width = 1 if args.quantize is not None else 4  # bytes of a weight within the blocks, at most
    needed = sum(math.prod(shape) * (width if name.startswith("h.") else 4) for name, shape in expected_shapes(config).items())
    available = available_bytes(device)
    if available is not None and needed > 0.8 * available:
        print("too little memory is free to lay weights out by columns: decoding is slower", file=sys.stderr)
        return None
    return "columns"
