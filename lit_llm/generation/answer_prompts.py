"""The generate scripts: load, complete, write the texts to stdout or a file and the speed to stderr."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_llm.args.generate import AdapterGenerateArgs, FullGenerateArgs, GenerateArgs
from lit_llm.checkpoint.adapters import read_adapter
from lit_llm.cli import DEMO
from lit_llm.files import read_json_object
from lit_llm.generation.decode import Batch, Row, continue_rows
from lit_llm.generation.generate import check_context, encode_prompt
from lit_llm.generation.load_from_options import load_for_inference
from lit_llm.generation.prompt_file import AnswerFile, Prompt, as_messages, as_text, read_lines, read_text
from lit_llm.generation.sampling import Sampling
from lit_llm.generation.speculative import check_draft, continue_drafted
from lit_llm.memory import peak_memory_gb
from lit_llm.model.gpt import GPT
from lit_llm.progress import Progress
from lit_llm.ranks import naming_lost_ranks
from lit_llm.text.conversation import prompt_ids
from lit_llm.text.ending import ending, raw_ending
from lit_llm.text.stream import candidate_text, token_texts
from lit_llm.text.tokenizer import Tokenizer


def continue_prompts(args: GenerateArgs) -> None:
    """Print each prompt and what follows it, once per sample."""
    prompts = _prompts(args)
    model, tokenizer = load_for_inference(args, args.checkpoint_dir or DEMO / "checkpoint", None)
    _write(args, prompts, _encode(args, model, prompts, lambda p: encode_prompt(tokenizer, as_text(p))), model, tokenizer, None)


def answer(args: AdapterGenerateArgs) -> None:
    """Print the answer to each instruction, asked in the style that the adapter was trained with, once per sample."""
    prompts = _prompts(args)
    about = read_adapter(args.adapter_dir)
    model, tokenizer = load_for_inference(args, args.checkpoint_dir or Path(about["base_checkpoint_dir"]), args.adapter_dir)
    _answer_in_style(args, prompts, model, tokenizer, about["prompt_style"])


def answer_finetuned(args: FullGenerateArgs) -> None:
    """Print the answer of a fully finetuned or merged model to each instruction, asked in the style of its finetuning."""
    prompts = _prompts(args)
    path = args.checkpoint_dir / "finetuned.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{args.checkpoint_dir} has no finetuned.json, which finetune/full.py and scripts/merge_lora.py write. Use "
            "generate/base.py for a plain model, generate/lora.py --adapter_dir for an adapter"
        )
    model, tokenizer = load_for_inference(args, args.checkpoint_dir, None)
    _answer_in_style(args, prompts, model, tokenizer, read_json_object(path)["prompt_style"])


def _answer_in_style(
    args: AdapterGenerateArgs | FullGenerateArgs, prompts: Sequence[Prompt], model: GPT, tokenizer: Tokenizer, style: str
) -> None:
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
    until = (raw_ending(tokenizer) if style is None else ending(style, tokenizer)).with_strings(args.stop)
    n, total = args.num_samples, len(prompts) * args.num_samples
    draft = None if args.draft_checkpoint_dir is None else load_for_inference(args, args.draft_checkpoint_dir, None)
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
            row = Row(tokenizer, encoded[i // n], args.max_new_tokens, sampling, until, style is None, args.logprobs)
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
