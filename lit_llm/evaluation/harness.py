"""Models in EleutherAI's evaluation harness (https://github.com/EleutherAI/lm-evaluation-harness)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, handle_non_serializable, make_disjoint_window, make_table
from tqdm import tqdm

from lit_llm.args.evaluate import HarnessArgs
from lit_llm.checkpoint.adapters import trained_style
from lit_llm.errors import CheckpointError, OptionError
from lit_llm.evaluation.score import Span, score
from lit_llm.files import json_text, write_whole
from lit_llm.generation.generate import generate_batch
from lit_llm.generation.load_from_options import load_args
from lit_llm.generation.sampling import Sampling, usable
from lit_llm.model.gpt import GPT
from lit_llm.ranks import claimed_for_all, naming_lost_ranks
from lit_llm.text.conversation import default_style, prompt_style, set_template_kwargs
from lit_llm.text.ending import raw_ending
from lit_llm.text.tokenizer import Tokenizer

Message = dict[str, str]


class HarnessModel(TemplateLM):
    """A model for the harness. A subclass, since the harness accepts nothing else. The base class tokenizes contexts and
    continuations, so that the tokens are those of the harness's own `hf` model.

    Args:
        style: Prompt style of chats. None: the checkpoint's template.
    """

    tokenizer: Tokenizer  # type: ignore[assignment]

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, checkpoint_dir: Path, batch_size: int, style: str | None = None
    ) -> None:
        super().__init__()
        self.style = style or default_style(tokenizer, False)
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.max_length, self.checkpoint_dir, self._device = model.config.block_size, checkpoint_dir, model.device

    @property
    def eot_token_id(self) -> int:
        if self.tokenizer.eos_id is None:
            raise CheckpointError(f"the tokenizer of {self.checkpoint_dir} has no EOS token, which the harness needs")
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Token that precedes texts without a context."""
        return self.eot_token_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.tokenizer.encode(string, bos=add_special_tokens)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is greedy. Long contexts are cut from the left."""
        spans = [Span((context + answer)[-self.max_length - 1 :], len(answer)) for _, context, answer in requests]
        scores = score(self.model, spans, self.batch_size, None if disable_tqdm else "log-likelihoods")
        return [(sum(s.log_probs), s.greedy) for s in scores]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        windows: list[tuple[int, list[int], list[int]]] = []
        for i, request in enumerate(requests):
            (text,) = request.args
            tokens = self.tok_encode(text)
            rolling = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            windows += [(i, *make_disjoint_window(window)) for window in rolling]
        totals = [0.0] * len(requests)
        for (i, _, _), (log_prob, _) in zip(windows, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[i] += log_prob
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        groups: dict[str, list[int]] = {}
        for i in sorted(range(len(requests)), key=lambda i: -len(prompts[i])):
            options = requests[i].args[1]  # type: ignore[misc]  # lm_eval types the arguments as an empty tuple
            groups.setdefault(json.dumps(options, sort_keys=True), []).append(i)
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc="texts", disable=disable_tqdm) as bar:
            for key, indices in groups.items():
                for start in range(0, len(indices), self.batch_size):
                    batch = indices[start : start + self.batch_size]
                    for i, text in zip(batch, self._generate([prompts[i] for i in batch], json.loads(key)), strict=True):
                        answers[i] = text
                    bar.update(len(batch))
        return answers

    def _generate(self, prompts: list[list[int]], options: dict[str, Any]) -> list[str]:
        """Return the continuations up to the first of the task's stop sequences."""
        known: dict[str, Any] = dict(normalize_gen_kwargs(options, 256))
        stop = [text for text in known.pop("until") if text]
        n_new, sampling = known.pop("max_gen_toks"), known.pop("do_sample")
        chosen = {name: known.pop(name) for name in ("temperature", "top_k", "top_p") if name in known}
        if known.pop("num_beams", 1) != 1:
            raise OptionError("the task sets num_beams, but beam search is not supported. Use 1 or omit it")
        if known:
            raise OptionError(f"the task sets {', '.join(known)} for generation, which is not supported")
        if n_new >= self.max_length:
            raise OptionError(f"the task generates {n_new} tokens, but the context has {self.max_length}")
        kept = [prompt[-(self.max_length - n_new) :] for prompt in prompts]
        chosen = chosen if sampling else {}
        chosen["temperature"] = usable(chosen.get("temperature", 1.0)) if sampling else 0.0
        until = raw_ending(self.tokenizer).with_strings(stop)
        found = generate_batch(self.model, self.tokenizer, kept, n_new, Sampling(**chosen), until)
        return [c.text for c in found]  # the harness cuts at each stop sequence in turn, which ends at the earliest one, too

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        text = prompt_style(self.style, self.tokenizer).render(
            chat_history, add_generation_prompt, self.tokenizer.special_tokens
        )
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()  # the answer is continued: its turn stays open
        return text[: text.rindex(last) + len(last)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template that the harness saves with its results."""
        return repr(prompt_style(self.style, self.tokenizer)) if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        return str(self.checkpoint_dir).replace("/", "__")


@naming_lost_ranks("Start again")
def evaluate(args: HarnessArgs) -> dict[str, Any]:
    """Run the tasks, print the harness's table, and write its results."""
    with claimed_for_all(args.output_file, "output_file"):
        return _evaluate(args)


def _evaluate(args: HarnessArgs) -> dict[str, Any]:
    tasks = task_names(args.tasks)
    manager = task_manager(tasks, args.include_path)
    model, tokenizer, checkpoint_dir = load_args(args)
    style = args.prompt_style or trained_style(args.adapter_dir or checkpoint_dir)
    if args.apply_chat_template and style is None and tokenizer.chat_template is None:
        raise OptionError(f"{checkpoint_dir} has no chat template. Specify `prompt_style`, or omit `apply_chat_template`")
    set_template_kwargs(tokenizer, args.template_kwargs, style or default_style(tokenizer, False))
    results = simple_evaluate(
        model=HarnessModel(model, tokenizer, checkpoint_dir, args.batch_size, style),
        tasks=list(tasks),
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        batch_size=args.batch_size,
        log_samples=args.log_samples,
        apply_chat_template=args.apply_chat_template,
        task_manager=manager,
    )
    if results is None:  # the harness returns them on the first rank only
        return {}
    samples = results.pop("samples", {})
    results["config"]["model"] = "lit_llm"  # type: ignore[index]
    results["config"]["model_args"] = {  # type: ignore[index]
        "checkpoint_dir": str(checkpoint_dir), "adapter_dir": args.adapter_dir, "quantize": args.quantize,
        "precision": args.precision,
    }  # fmt: skip
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    if args.output_file is not None:
        args.output_file.parent.mkdir(parents=True, exist_ok=True)
        _write_json(args.output_file, [results], indent=2)
        for task, rows in samples.items():
            _write_json(args.output_file.parent / f"samples_{task}.jsonl", rows)
    return dict(results)


def task_names(tasks: str | list[str]) -> list[str]:
    return tasks if isinstance(tasks, list) else [t.strip() for t in tasks.strip("[]").split(",") if t.strip()]


def _write_json(path: Path, values: Sequence[Any], indent: int | None = None) -> None:
    lines = [json_text(value, default=handle_non_serializable, indent=indent) for value in values]
    write_whole(path, "".join(f"{line}\n" for line in lines))


def task_manager(tasks: list[str], include_path: Path | None) -> TaskManager:
    """Return an index of this folder, and of the harness's own tasks unless the folder has all requested tasks."""
    if not tasks:
        raise OptionError("`tasks` is empty")
    if include_path is not None:
        if not include_path.is_dir():
            raise FileNotFoundError(f"`include_path` {include_path} is not a folder")
        manager = TaskManager(include_path=include_path, include_defaults=False)
        if all(task in manager.all_tasks for task in tasks):
            return manager
    manager = TaskManager(include_path=include_path)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        import difflib

        near = difflib.get_close_matches(unknown[0], manager.all_tasks, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "specify the folder of your own tasks as `include_path`"
        raise OptionError(f"task {unknown[0]} is unknown; {hint}")
    return manager
