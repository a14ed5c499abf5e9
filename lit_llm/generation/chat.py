"""A conversation in the terminal: the user types, and the model answers."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lit_llm.args.serve import ChatArgs
from lit_llm.checkpoint.adapters import trained_style
from lit_llm.errors import OptionError, with_flags
from lit_llm.generation.decode import Batch, Row, continue_rows
from lit_llm.generation.load_from_options import load_args
from lit_llm.generation.sampling import Sampling
from lit_llm.model.gpt import GPT
from lit_llm.text.conversation import default_style, prompt_ids, set_template_kwargs
from lit_llm.text.ending import ending
from lit_llm.text.tokenizer import Tokenizer

HELP = """\
/reset          forget the conversation
/system TEXT    set the system message; without TEXT use the style's own
/save FILE      add the conversation to a JSON Lines file, as a record to train on
/help           show this list
/quit           leave, as does Ctrl-D
Ctrl-C stops an answer. Write // for a message that begins with /."""


class Conversation:
    """The turns so far, and a model that answers them in one prompt style.

    When a message no longer fits into the context, the oldest exchanges are forgotten. A quarter of the context stays free for
    the answer, or `max_new_tokens` if that is less.

    Args:
        finetuned: The model was finetuned in this style; see `prompt_ids`.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, style: str, args: ChatArgs, finetuned: bool = False) -> None:
        self.model, self.tokenizer, self.style, self.args, self.finetuned = model, tokenizer, style, args, finetuned
        self.system = args.system
        self.turns: list[dict[str, str]] = []
        self._n_answers = 0

    def messages(self) -> list[dict[str, str]]:
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return [*opening, *self.turns]

    def answer(self, text: str) -> Iterator[str]:
        """Yield the model's answer to a message, in pieces. The pieces become a turn, even if the caller stops early.

        Raises:
            OptionError: if the message alone does not fit into the context.
        """
        self.turns.append({"role": "user", "content": text})
        said = ""
        try:
            ids = self._fitting_ids()
            n_new = min(self.args.max_new_tokens, self.model.config.block_size - len(ids))
            sampling = Sampling(self.args.temperature, self.args.top_k, self.args.top_p, seed=self.args.seed + self._n_answers)
            self._n_answers += 1
            row = Row(self.tokenizer, ids, n_new, sampling, ending(self.style, self.tokenizer))
            for _, piece in continue_rows(Batch[Row](self.model, 1, len(ids) + n_new), [row]):
                piece = piece if said else piece.lstrip()  # some styles write a space before an answer
                said += piece
                yield piece
            if not row.completion().ended:
                _log("the answer was cut: its limit or the end of the context is reached")
        finally:
            if said.strip():
                self.turns.append({"role": "assistant", "content": said.rstrip()})
            else:
                self.turns.pop()

    def _fitting_ids(self) -> list[int]:
        context, before = self.model.config.block_size, list(self.turns)
        free = min(self.args.max_new_tokens, context // 4)
        while len(ids := self._prompt_ids()) + free > context and len(self.turns) > 1:
            del self.turns[:2]
        if len(ids) >= context:
            self.turns = before
            raise OptionError(f"the message has {len(ids)} tokens in its prompt style, the context {context}. Shorten it")
        if n_forgotten := (len(before) - len(self.turns)) // 2:
            _log(f"the context of {context} tokens is full: the oldest {n_forgotten} exchanges are forgotten")
        return ids

    def _prompt_ids(self) -> list[int]:
        return prompt_ids(self.style, self.tokenizer, self.messages(), self.finetuned)


def chat(args: ChatArgs) -> None:
    """Answer lines of standard input until its end or /quit. Answers go to stdout, everything else to stderr."""
    model, tokenizer, folder = load_args(args)
    trained = trained_style(args.adapter_dir or folder)
    style = args.prompt_style or trained or default_style(tokenizer, is_text=False)
    set_template_kwargs(tokenizer, args.template_kwargs, style)
    conversation = Conversation(model, tokenizer, style, args, finetuned=style == trained)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # an error would lose the lines read together with a bad one
    _log(f"prompt style {style}; /help lists the commands")
    while (line := _read_line()) is not None:
        if line.startswith("/") and not line.startswith("//"):
            if not _command(conversation, line):
                return
        elif line:
            _show(conversation, line.removeprefix("/") if line.startswith("//") else line)


def _read_line() -> str | None:
    """Return the next line without white space around it; None at the end."""
    with suppress(ImportError):  # keys to edit a line, if the system has them
        import readline  # noqa: F401
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
            line.encode()  # invalid UTF-8 may come as unpaired surrogates
            return line
        except UnicodeError:
            _log("the line is not UTF-8 and was ignored. Write it again")
        except EOFError:
            return None
        except KeyboardInterrupt:
            _log("\nCtrl-D or /quit leaves")


def _show(conversation: Conversation, text: str) -> None:
    try:
        for piece in conversation.answer(text):
            print(piece, end="", flush=True)
        print()
    except KeyboardInterrupt:
        print()
        _log("stopped")
    except ValueError as error:
        _log(with_flags(str(error), vars(conversation.args)))


def _command(conversation: Conversation, line: str) -> bool:
    """Run a command. Return False if it ends the conversation."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/quit":
        return False
    if name == "/help":
        _log(HELP)
    elif name == "/reset":
        conversation.turns.clear()
        _log("the conversation is forgotten")
    elif name == "/system":
        conversation.system = rest or None
        _log("the system message is set" if rest else "the system message is the style's own")
    elif name == "/save":
        _log(_save(conversation, rest))
    else:
        _log(f"{name} is not a command; /help lists them")
    return True


def _save(conversation: Conversation, path: str) -> str:
    if not path or not conversation.turns:
        return "/save needs the name of a file" if not path else "nothing was said yet"
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": conversation.messages()}, ensure_ascii=False) + "\n")
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        return f"{path!r} cannot be written: {getattr(error, 'strerror', error)}"
    return f"added to {path}"


def _log(text: str) -> None:
    print(text, file=sys.stderr)
