"""The generate scripts: load a model, complete prompts, write the texts to stdout or a file and the speed to stderr."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from lit_llm.args.generate import AdapterGenerateArgs, FullGenerateArgs, GenerateArgs
from lit_llm.checkpoint.adapters import adapter_files, read_adapter, trained_style
from lit_llm.checkpoint.peft_adapters import is_peft
from lit_llm.cli import DEMO
from lit_llm.data.records import variables_of
from lit_llm.errors import OptionError
from lit_llm.files import json_text
from lit_llm.generation.decode import Batch, Row, continue_rows
from lit_llm.generation.generate import check_context, encode_prompt
from lit_llm.generation.load_from_options import load_for_inference
from lit_llm.generation.prompt_file import AnswerFile, Prompt, as_messages, as_text, read_lines, read_prompts
from lit_llm.generation.sampling import Sampling
from lit_llm.generation.speculative import check_draft, continue_drafted
from lit_llm.memory import peak_memory_gb
from lit_llm.model.gpt import GPT
from lit_llm.progress import Progress
from lit_llm.ranks import claimed_for_all, naming_lost_ranks
from lit_llm.text.conversation import check_rendered, default_style, prompt_ids, prompt_style, set_template_kwargs
from lit_llm.text.ending import ending, raw_ending
from lit_llm.text.stream import candidate_text, token_texts
from lit_llm.text.tokenizer import Tokenizer


def _claiming_the_output(script: Callable[[Any], None]) -> Callable[[Any], None]:
    @wraps(script)
    def claims(args: GenerateArgs) -> None:
        with claimed_for_all(args.output_file, "output_file"):
            script(args)

    return claims


@_claiming_the_output
def continue_prompts(args: GenerateArgs) -> None:
    """Print each prompt and its continuation, once per sample."""
    prompts = _read_prompts(args)
    model, tokenizer = load_for_inference(args, args.checkpoint_dir or DEMO / "checkpoint", None)
    _Generation(args, prompts, model, tokenizer, None).run()


@_claiming_the_output
def answer(args: AdapterGenerateArgs) -> None:
    """Print the answer to each instruction, asked in the prompt style of the adapter, once per sample."""
    prompts = _read_prompts(args)
    about = read_adapter(args.adapter_dir)
    model, tokenizer = load_for_inference(args, args.checkpoint_dir or Path(about["base_checkpoint_dir"]), args.adapter_dir)
    style = about["prompt_style"]
    if style is None and is_peft(args.adapter_dir):  # which does not record one
        style = default_style(tokenizer, is_text=False)
        print(f"prompt style {style}", file=sys.stderr)
    set_template_kwargs(tokenizer, args.template_kwargs, style)
    _Generation(args, prompts, model, tokenizer, style).run()


@_claiming_the_output
def answer_finetuned(args: FullGenerateArgs) -> None:
    """Print the answer of a fully finetuned or merged model to each instruction, asked in the style of its finetuning."""
    prompts = _read_prompts(args)
    path = args.checkpoint_dir / "finetuned.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{args.checkpoint_dir} has no finetuned.json, which finetune/full.py and scripts/merge_lora.py write. Use "
            "generate/base.py for a plain model, generate/lora.py --adapter_dir for an adapter"
        )
    model, tokenizer = load_for_inference(args, args.checkpoint_dir, None)
    style = trained_style(args.checkpoint_dir)
    set_template_kwargs(tokenizer, args.template_kwargs, style)
    _Generation(args, prompts, model, tokenizer, style).run()


def _read_prompts(args: GenerateArgs) -> Sequence[Prompt]:
    if args.prompt_file is None:
        assert args.prompt is not None
        return [args.prompt]
    return read_lines(args.prompt_file) if args.has_many_prompts() else [read_prompts(args.prompt_file)]


class _Sample(Row):
    """A row that knows its place: `index` counts the samples of all prompts."""

    index: int


class _Generation:
    """Generates `num_samples` texts from each prompt, and writes them in the order of the prompts.

    The output is JSON lines in a file or on stdout, or plain text.

    Args:
        style: Ask the prompts in the prompt style of this name; None: continue them unchanged.
    """

    def __init__(
        self, args: GenerateArgs, prompts: Sequence[Prompt], model: GPT, tokenizer: Tokenizer, style: str | None
    ) -> None:
        self.args, self.prompts, self.model, self.tokenizer, self.style = args, prompts, model, tokenizer, style
        self.encoded = [self._encode(number, prompt) for number, prompt in enumerate(prompts, 1)]
        until = raw_ending(tokenizer) if style is None else ending(style, tokenizer)
        self.ending = until.with_strings(args.stop)
        self.as_lines = args.output_file is not None or args.has_many_prompts()
        # The prompt as it was given: its tokens lack the spelling of special tokens.
        self.before = as_text(prompts[0]) if style is None and not self.as_lines else ""
        self.file: AnswerFile | None = None
        self.progress: Progress | None = None
        self.total, self.n_written = len(prompts) * args.num_samples, 0
        self.finished = dict[int, _Sample]()  # those that wait for one before them

    def _encode(self, number: int, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt. Raises OptionError, with its number, if it cannot be asked."""
        try:
            json.dumps(prompt, ensure_ascii=False).encode()  # an unpaired surrogate is a ValueError
            if self.style is None:
                ids = encode_prompt(self.tokenizer, as_text(prompt))
            else:
                messages = as_messages(prompt, getattr(self.args, "input", ""))
                variables = variables_of(prompt) if isinstance(prompt, dict) else {}
                check_rendered(prompt_style(self.style, self.tokenizer), messages, self.tokenizer.special_tokens, variables)
                ids = prompt_ids(self.style, self.tokenizer, messages, finetuned=True, variables=variables)
            check_context(self.model, len(ids), self.args.max_new_tokens)
        except ValueError as error:
            where = f"{self.args.prompt_file}, prompt {number}: " if self.args.has_many_prompts() else ""
            raise OptionError(f"{where}{error}") from error
        return ids

    @naming_lost_ranks("Start again")
    def run(self) -> None:
        args = self.args
        draft = None if args.draft_checkpoint_dir is None else load_for_inference(args, args.draft_checkpoint_dir, None)
        if args.output_file is not None:
            keys = _keys(args, self.model, None if draft is None else draft[0], self.encoded)
            self.file = AnswerFile(args.output_file, keys)
            self.n_written = self.file.n_done
        if self.n_written == self.total:
            print(f"{args.output_file} holds all {self.total} answers already", file=sys.stderr)
            return
        if self.as_lines:
            self.progress = Progress("answers", self.total, self.n_written)
        texts, start, n_new = self._texts(draft), time.perf_counter(), 0
        self._stream(self.before)
        for sample, text in texts:
            self._stream(text)
            if sample.done:
                n_new += sample.n_new
                self._add(sample)
        seconds, memory = time.perf_counter() - start, max(map(peak_memory_gb, self.model.devices))
        for output in (self.progress, self.file):
            if output is not None:
                output.close()
        print(f"{n_new} tokens in {seconds:.2f} s, {n_new / seconds:.1f} tokens/s, {memory:.2f} GB at most", file=sys.stderr)

    def _texts(self, draft: tuple[GPT, Tokenizer] | None) -> Iterator[tuple[_Sample, str]]:
        """Continue all samples as `continue_rows`, in batches or, with a draft, one by one."""
        args, longest = self.args, max(map(len, self.encoded))
        if draft is None:
            size, length = min(args.batch_size, self.total - self.n_written), longest + args.max_new_tokens
            batch = Batch[_Sample](self.model, size, length, args.kv_cache == "int8", args.compile)
            return continue_rows(batch, self._samples())
        check_draft(self.model, self.tokenizer, *draft)
        check_context(draft[0], longest, args.max_new_tokens)
        return ((s, text) for s in self._samples() for text in continue_drafted(self.model, draft[0], s))

    def _samples(self) -> Iterator[_Sample]:
        args = self.args
        for i in range(self.n_written, self.total):
            how = Sampling(args.temperature, args.top_k, args.top_p, args.min_p, args.repetition_penalty, seed=args.seed + i)
            ids = self.encoded[i // args.num_samples]
            sample = _Sample(self.tokenizer, ids, args.max_new_tokens, how, self.ending, self.style is None, args.logprobs)
            sample.index = i
            yield sample

    def _stream(self, text: str) -> None:
        if self.args.stream:
            print(text, end="", flush=True)

    def _add(self, sample: _Sample) -> None:
        """Write a finished sample as soon as all before it are written."""
        self.finished[sample.index] = sample
        while (upcoming := self.finished.pop(self.n_written, None)) is not None:
            self._write(upcoming)
            self.n_written += 1
            if self.progress is not None:
                self.progress.update()

    def _write(self, sample: _Sample) -> None:
        if not self.as_lines:
            print("" if self.args.stream else self.before + sample.stream.text)
            return
        i, j = divmod(sample.index, self.args.num_samples)
        outcome = _outcome(sample, self.tokenizer, self.style is None)
        line = {"row": i, "sample": j, "prompt": self.prompts[i], **outcome}
        if self.file is None:
            print(json_text(line), flush=True)
        else:
            self.file.write(line)


def _outcome(row: Row, tokenizer: Tokenizer, continues: bool) -> dict[str, Any]:
    """Return the result of a row for a JSON line. The last tokens may be those of a stop string, which the text lacks."""
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
    """Return a checksum for each sample of everything that determines it: models, options, prompt and seed."""
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "logprobs", "precision",
             "quantize", "cpu_weights", "kv_cache")  # fmt: skip
    folder: Path | None = getattr(args, "adapter_dir", None)
    files = [] if folder is None else adapter_files(folder)
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    models = [model.fingerprint, None if draft is None else draft.fingerprint]
    common = [*models, *sums, getattr(args, "merge", False), *[getattr(args, name) for name in names]]
    everything = ([ids, *common] for ids in encoded for _ in range(args.num_samples))
    return [hashlib.sha256(json.dumps([args.seed + i, *x]).encode()).hexdigest()[:16] for i, x in enumerate(everything)]
