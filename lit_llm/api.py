"""The Python interface: load a model and ask it, finetune a model, in a script, a notebook or any thread.

import lit_llm

llm = lit_llm.load_llm("checkpoints/EleutherAI/pythia-160m")
print(llm.ask("Name the seven seas."))
run = lit_llm.finetune(lit_llm.LoRAFinetuneArgs(checkpoint_dir="checkpoints/EleutherAI/pythia-160m", data_dir="my.csv"))
print(lit_llm.load_llm(run.final).ask("Name the seven seas."))
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lit_llm.args.finetune import FinetuneArgs
from lit_llm.args.generate import ModelArgs
from lit_llm.checkpoint.adapters import is_adapter, read_adapter, trained_style
from lit_llm.checkpoint.read import expected_shapes
from lit_llm.cli import demo_recipe
from lit_llm.errors import OptionError
from lit_llm.generation.decode import Batch, Row, continue_rows
from lit_llm.generation.generate import encode_prompt
from lit_llm.generation.load_from_options import load_args
from lit_llm.generation.prompt_file import as_messages
from lit_llm.generation.sampling import Sampling
from lit_llm.model.gpt import GPT
from lit_llm.text.conversation import default_style, prompt_ids
from lit_llm.text.ending import Ending, ending, raw_ending
from lit_llm.text.tokenizer import Tokenizer
from lit_llm.training.run import Run

Messages = Sequence[Mapping[str, str]]
"""Turns of a conversation, each with `role` (system, user, assistant) and `content`; the last is the user's."""


class LLM:
    """A model with its tokenizer and prompt style, as `load_llm` returns it.

    Attributes:
        model: Network that maps token ids (B, T) to logits (B, T, vocab_size).
        style: Name of the prompt style: that of the finetuning, else the checkpoint's chat template, else alpaca.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, checkpoint_dir: Path, args: ModelArgs) -> None:
        self.model, self.tokenizer, self.checkpoint_dir, self.args = model, tokenizer, checkpoint_dir, args
        trained = trained_style(args.adapter_dir or checkpoint_dir)
        self.style, self.finetuned = trained or default_style(tokenizer, is_text=False), trained is not None

    def __repr__(self) -> str:
        size = sum(math.prod(shape) for shape in expected_shapes(self.model.config).values())
        parts = [f"{size:,} parameters", str(self.model.dtype).removeprefix("torch."), f"on {self.model.device}"]
        if self.args.quantize is not None:
            parts.append(f"linears in {self.args.quantize}")
        if (adapter_dir := self.args.adapter_dir) is not None:
            parts.append(f"{read_adapter(adapter_dir)['method']} adapter {adapter_dir}")
        return f"LLM({self.checkpoint_dir}, {', '.join(parts)}, prompt style {self.style})"

    def ask(self, question: str | Messages, **sampling: Any) -> str:
        """Return the answer to a question or a conversation. See `stream` for the arguments."""
        return "".join(self.stream(question, **sampling))

    def stream(
        self, question: str | Messages, *, max_new_tokens: int = 512, stop: Sequence[str] = (), **sampling: Any
    ) -> Iterator[str]:
        """Yield the answer to a question or a conversation, in pieces of text.

        Args:
            max_new_tokens: Longest answer; it is shorter if the context ends before.
            stop: More strings that end the answer, and are not part of it.
            sampling: temperature (0 takes the most likely token), top_k, top_p, min_p, repetition_penalty, seed;
                see `lit_llm.generation.sampling.Sampling`.

        Raises:
            ValueError: if the conversation or an argument is malformed, or the prompt fills the context.
        """
        messages = as_messages(question if isinstance(question, str) else {"messages": [dict(turn) for turn in question]})
        ids = prompt_ids(self.style, self.tokenizer, messages, self.finetuned)
        return self._continue(ids, max_new_tokens, ending(self.style, self.tokenizer).with_strings(_strings(stop)), sampling)

    def complete(self, prompt: str, *, max_new_tokens: int = 512, stop: Sequence[str] = (), **sampling: Any) -> str:
        """Return the continuation of a raw prompt, without a prompt style. See `stream` for the arguments."""
        ids, until = encode_prompt(self.tokenizer, prompt), raw_ending(self.tokenizer).with_strings(_strings(stop))
        return "".join(self._continue(ids, max_new_tokens, until, sampling, continues=True))

    def _continue(
        self, ids: list[int], max_new_tokens: int, until: Ending, sampling: dict[str, Any], continues: bool = False
    ) -> Iterator[str]:
        try:
            how = Sampling(**sampling)
        except TypeError as error:
            raise OptionError(f"{error}. Sampling takes {', '.join(Sampling.__dataclass_fields__)}") from error
        room = self.model.config.block_size - len(ids)
        if room < 1 or max_new_tokens < 1:
            raise OptionError(
                f"a prompt of {len(ids)} tokens and `max_new_tokens` {max_new_tokens} leave no room for an answer: the context "
                f"is {self.model.config.block_size}. Shorten the prompt or use `max_new_tokens` above 0"
            )
        n_new = min(max_new_tokens, room)
        row = Row(self.tokenizer, ids, n_new, how, until, continues)
        return (text for _, text in continue_rows(Batch[Row](self.model, 1, len(ids) + n_new), [row]) if text)


def _strings(stop: Sequence[str]) -> Sequence[str]:
    if isinstance(stop, str):
        raise OptionError(f'`stop` is a list of strings, found a string. Use ["{stop}"]')
    return stop


def load_llm(
    folder: Path | str | None = None,
    adapter_dir: Path | str | None = None,
    device: str = "auto",
    precision: str | None = None,
    quantize: str | None = None,
) -> LLM:
    """Load a model to ask.

    Args:
        folder: Checkpoint; or an adapter, as finetuning or PEFT wrote it, which is loaded with its base. Default: the base of
            `adapter_dir`, or the embedded demo's.
        adapter_dir: Adapter that was trained on this checkpoint.
        device: `auto` uses CUDA, else MPS, else the CPU.
        precision: `32-true`, `16-true` or `bf16-true`. Default: float32 on a CPU, otherwise the checkpoint's own dtype.
        quantize: bnb.nf4, bnb.nf4-dq, bnb.fp4, bnb.fp4-dq or bnb.int8.

    Raises:
        FileNotFoundError: if files are missing.
        ValueError: if they do not fit together, or an argument is not valid.
    """
    if folder is not None and adapter_dir is None and is_adapter(Path(folder)):
        folder, adapter_dir = None, folder
    given: dict[str, Any] = {"precision": precision, "quantize": quantize, "accelerator": device}
    args = ModelArgs(checkpoint_dir=folder, adapter_dir=adapter_dir, **given)  # type: ignore[arg-type]  # strings become paths
    return LLM(*load_args(args), args)


def finetune(args: FinetuneArgs) -> Run:
    """Finetune a model and return the run: its folder, metrics, best and final weights, answers before and after.

    The class of `args` selects the method: LoRAFinetuneArgs, FullFinetuneArgs, AdapterFinetuneArgs and so on. With neither
    checkpoint_dir nor data_dir, the embedded demo is trained with its recipe, which sets all options that are at their
    defaults.

    Raises:
        ValueError, FileNotFoundError: for options, data or a checkpoint that cannot be used; see `lit_llm.errors`.
    """
    from lit_llm.training import finetune as training  # not needed to ask a model

    if args.checkpoint_dir is None and args.data_dir is None:
        path, folders = demo_recipe(args.method)
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        args = _with_defaults(args, type(args)(), {**recipe, **folders})
    return training.finetune(args)


def _with_defaults(args: Any, default: Any, recipe: Mapping[str, Any]) -> Any:
    """Return the options with those of a recipe in place of options that are at their defaults."""
    changes = {}
    for name, value in recipe.items():
        given, usual = getattr(args, name), getattr(default, name)
        if isinstance(value, Mapping):
            changes[name] = _with_defaults(given, usual, value)
        elif given == usual:
            changes[name] = value
    return replace(args, **changes)
