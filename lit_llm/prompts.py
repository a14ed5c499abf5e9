"""Prompt styles: from a conversation to the text that a model reads, and which of it is trained.

A style is a row of the table below, or a checkpoint's own Jinja chat template. Training and inference read the same segments:
what a model is trained on up to an answer is, token by token, what it is asked with.
"""

import datetime
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from lit_llm.tokenizer import Tokenizer

Message = Mapping[str, str]
"""`role` (system, user, assistant) and `content`; of a user also `input`, for styles that set it apart."""
TrainOn = Literal["all", "last"]

CHAT_TEMPLATE = "chat_template"


class Style(Protocol):
    def render(self, messages: Sequence[Message], generation: bool, tokens: Mapping[str, str]) -> str:
        """Text of a conversation; with `generation`, up to where the model's next answer begins.

        Args:
            tokens: Texts of the special tokens, by names like eos_token.
        """
        ...


@dataclass(frozen=True)
class Turns:
    """A style that a table can tell. The slots `{user}`, `{input}`, `{system}`, `{bos}` and `{eos}` are filled in."""

    user: str
    """A user's turn, up to where the answer begins. `{system}` is empty but in the first."""
    answer: str = "{answer}{eos}"
    system: str = "{}\n\n"
    """How a system text stands in its slot."""
    default_system: str = ""
    with_input: str = ""
    """In place of `user` for a turn with further input; without it the input follows the instruction after an empty line."""
    default_system_with_input: str = ""
    first: str = ""
    """Before the first turn."""
    between: str = ""
    """Before each further one of the user."""
    stop: tuple[str, ...] = ()
    """Where published models of the style go on to write the next turn, what that begins with."""

    def render(self, messages: Sequence[Message], generation: bool, tokens: Mapping[str, str]) -> str:
        slots = {"bos": tokens.get("bos_token", ""), "eos": tokens.get("eos_token", "")}
        system, messages = split_system(messages)
        text = self.first.format(**slots)
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                text += self.answer.format(answer=message["content"], **slots)
                continue
            more = message.get("input", "")
            apart = bool(more and self.with_input)
            content = message["content"] if apart or not more else f"{message['content']}\n\n{more}"
            if i == 0 and system is None:
                system = (apart and self.default_system_with_input) or self.default_system
            opening = self.system.format(system, **slots) if i == 0 and system else ""
            text += self.between.format(**slots) if i else ""
            text += (self.with_input if apart else self.user).format(user=content, input=more, system=opening, **slots)
        return text


def split_system(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    """The system text that a conversation begins with, if it does, and the turns behind it."""
    if messages and messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return None, messages


_ALPACA = "Below is an instruction that describes a task"
_LLAMA2 = "[INST] {system}{user} [/INST]"
_SYS = "<<SYS>>\n{}\n<</SYS>>\n\n"
_STABLELM = (
    "# StableLM Tuned (Alpha version)\n"
    "- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.\n"
    "- StableLM is excited to be able to help the user, but will refuse to do anything that could be considered harmful to the "
    "user.\n"
    "- StableLM is more than just an information source, StableLM is also able to write poetry, short stories, and make "
    "jokes.\n"
    "- StableLM will refuse to participate in anything that could harm a human."
)
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions."
)

# Each as its model card or training code publishes it. A space or line break that belongs to the answer stands in `answer`:
# tokenizers join it with the first word.
STYLES: dict[str, Turns] = {
    "alpaca": Turns(  # https://github.com/tatsu-lab/stanford_alpaca, train.py
        "{system}### Instruction:\n{user}\n\n### Response:\n",
        with_input="{system}### Instruction:\n{user}\n\n### Input:\n{input}\n\n### Response:\n",
        default_system=f"{_ALPACA}. Write a response that appropriately completes the request.",
        default_system_with_input=f"{_ALPACA}, paired with an input that provides further context. Write a response that "
        "appropriately completes the request.",
        between="\n\n",
        stop=("\n### Instruction:",),
    ),
    "chatml": Turns(
        "{system}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n", "{answer}<|im_end|>\n",
        "<|im_start|>system\n{}<|im_end|>\n",
    ),
    "codellama": Turns(_LLAMA2, " {answer} {eos}", _SYS, between="{bos}"),
    "dolly": Turns(  # https://github.com/databrickslabs/dolly, training/consts.py
        "{system}### Instruction:\n{user}\n\n### Response:\n",
        with_input="{system}### Instruction:\n{user}\n\nInput:\n{input}\n\n### Response:\n",
        default_system=f"{_ALPACA}. Write a response that appropriately completes the request.",
        between="\n\n",
        stop=("### End", "\n### Instruction:"),
    ),
    "falcon_instruct": Turns("{system}User: {user}\nAssistant:", " {answer}{eos}", "{}\n", between="\n", stop=("\nUser:",)),
    "freewilly2": Turns(
        "{system}### User:\n{user}\n\n### Assistant:\n", system="### System:\n{}\n\n", between="\n\n", stop=("\n### User:",),
        default_system="This is a system prompt, please behave and help the user.",
    ),
    "gemma": Turns(
        "<start_of_turn>user\n{system}{user}<end_of_turn>\n<start_of_turn>model\n", "{answer}<end_of_turn>\n", first="{bos}",
    ),
    "llama2": Turns(_LLAMA2, " {answer} {eos}", _SYS, between="{bos}"),
    "llama3": Turns(
        "{system}<|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "{answer}<|eot_id|>", "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>", first="{bos}",
    ),
    "mistral_instruct": Turns("[INST] {system}{user} [/INST]", "{answer}{eos}", first="{bos}"),
    "none": Turns("{system}{user}"),
    "nous_hermes": Turns(
        "{system}### Instruction:\n{user}\n\n### Response:\n", between="\n\n", stop=("\n### Instruction:",),
        with_input="{system}### Instruction:\n{user}\n\n### Input:\n{input}\n\n### Response:\n",
    ),
    "phi": Turns("{system}Instruct: {user}\nOutput:", " {answer}{eos}", "{}\n", between="\n", stop=("\nInstruct:",)),
    "plain": Turns("{system}{user}\n", with_input="{system}{user}\n{input}\n", between="\n"),
    "platypus": Turns("{system}### Instruction:\n\n{user}\n\n### Response:\n", between="\n\n", stop=("\n### Instruction:",)),
    "redpajama_chat": Turns("{system}<human>: {user}\n<bot>:", " {answer}{eos}", "{}\n", between="\n", stop=("\n<human>:",)),
    "redpajama_instruct": Turns("{system}Q: {user}\nA:", " {answer}{eos}", "{}\n", between="\n\n", stop=("\nQ:",)),
    "stablecode_instruct": Turns("{system}###Instruction\n{user}###Response\n", system="{}\n", stop=("###Instruction",)),
    "stablelm_tuned": Turns(
        "{system}<|USER|>{user}<|ASSISTANT|>", system="<|SYSTEM|>{}", default_system=_STABLELM,
    ),
    "vicuna": Turns("{system}USER: {user} ASSISTANT:", " {answer}{eos}", "{} ", default_system=_VICUNA, stop=("USER:",)),
    "zephyr": Turns(
        "{system}<|user|>\n{user}{eos}\n<|assistant|>\n", "{answer}{eos}\n", "<|system|>\n{}{eos}\n",
    ),
}  # fmt: skip
STYLES["qwen"] = STYLES["chatml"]


@dataclass(frozen=True)
class ChatTemplate:
    """The Jinja template of a checkpoint, rendered as transformers does, in Jinja's sandbox: it is a stranger's code."""

    source: str

    def render(self, messages: Sequence[Message], generation: bool, tokens: Mapping[str, str]) -> str:
        import jinja2

        joined = [
            {
                "role": m["role"],
                "content": f"{m['content']}\n\n{m['input']}" if m.get("input") else m["content"],
            }
            for m in messages
        ]
        try:
            template = _compile(self.source)
            return template.render(messages=joined, add_generation_prompt=generation, tools=None, documents=None, **tokens)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, ArithmeticError, RecursionError) as error:
            roles = ", ".join(m["role"] for m in messages)
            raise ValueError(
                f"the checkpoint's chat template cannot render a conversation of {roles}: {error}. "
                "Mend the data, or choose another --prompt_style"
            ) from error


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> Any:
    """With the settings and helpers that templates expect of transformers (utils/chat_template_utils.py)."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, with which a template marks answers: its content is rendered as it is."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:  # Jinja's own escapes HTML
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def prompt_style(name: str, tokenizer: Tokenizer | None = None) -> Style:
    """The style of a name; `chat_template` is that of the tokenizer's checkpoint.

    Raises:
        ValueError: if there is no such style, or the checkpoint has no chat template.
    """
    if name == CHAT_TEMPLATE and tokenizer is not None:
        if tokenizer.chat_template is None:
            raise ValueError("the checkpoint has no chat template. Choose another --prompt_style")
        return ChatTemplate(tokenizer.chat_template)
    if name not in STYLES:
        raise ValueError(f"prompt style {name!r} is not known; known styles: {CHAT_TEMPLATE}, {', '.join(sorted(STYLES))}")
    return STYLES[name]


def default_style(tokenizer: Tokenizer, is_text: bool) -> str:
    """The name of the style for a checkpoint and its data, where none is given."""
    return CHAT_TEMPLATE if tokenizer.chat_template is not None else "none" if is_text else "alpaca"


def fingerprint(style: Style, tokenizer: Tokenizer) -> str:
    """A checksum that changes with what the style renders. A template may render the date."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return hashlib.sha256(repr((style, style.render(turns, False, tokenizer.special_tokens))).encode()).hexdigest()


class Segment(NamedTuple):
    text: str
    trained: bool


def check_messages(messages: Any) -> None:
    """Raises ValueError unless `messages` may be a system text and then are turns of user and assistant, which has the last."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("'messages' must be a list of turns")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError("a turn must have a 'role' and a 'content'")
        if not isinstance(message.get("content"), str):
            raise ValueError("the 'content' of a turn must be a text")
        if message["role"] not in ("system", "user", "assistant"):
            raise ValueError(f"the role {message['role']!r} is not system, user or assistant")
        if message["role"] != "system" and not message["content"].strip():
            raise ValueError(f"a turn of the {message['role']} is empty")
    roles = [message["role"] for message in split_system(messages)[1]]
    if any(role != ("user", "assistant")[i % 2] for i, role in enumerate(roles)):
        raise ValueError("a role is out of order: user and assistant must take turns, the user first")
    if len(roles) % 2 or not roles:
        raise ValueError("the last turn is not the assistant's")


def question(instruction: str, input: str = "", system: str = "") -> list[Message]:
    """The conversation that an instruction opens."""
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": instruction, "input": input}]


def prompt(style: Style, messages: Sequence[Message], tokens: Mapping[str, str]) -> list[Segment]:
    """What a model reads before it answers `messages`: prompts at even, answers at odd places.

    One segment where the style writes earlier turns anew with each further one (templates that drop thoughts from the history).
    """
    segments: list[Segment] = []
    seen, after = "", ""
    whole = style.render(messages, True, tokens)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked, answered = style.render(messages[:i], True, tokens), style.render(messages[: i + 1], False, tokens)
        if not (asked.startswith(seen) and answered.startswith(asked)):
            return [Segment(whole, False)]
        answer, rest = _close(answered[len(asked) :], message["content"], tokens)
        segments += [Segment(after + asked[len(seen) :], False), Segment(answer, True)]
        seen, after = answered, rest
    if not whole.startswith(seen):
        return [Segment(whole, False)]
    return [*segments, Segment(after + whole[len(seen) :], False)]


def conversation(style: Style, messages: Sequence[Message], tokens: Mapping[str, str], train_on: TrainOn) -> list[Segment]:
    """A conversation that ends in an answer, cut where an answer begins or ends. An answer with a `weight` of 0 is not trained.

    Raises:
        ValueError: if nothing is trained, or the style renders an answer otherwise than behind the prompt that it is generated
            from.
    """
    *history, last = messages
    segments = prompt(style, history, tokens)
    if train_on == "last":
        segments = [Segment(text, False) for text, _ in segments]
    asked, answered = style.render(history, True, tokens), style.render(messages, False, tokens)
    if not answered.startswith(asked):
        same = next((i for i, (a, b) in enumerate(zip(asked, answered, strict=False)) if a != b), len(answered))
        raise ValueError(
            f"the prompt style asks with {asked[same : same + 30]!r} where it renders {answered[same : same + 30]!r} before an "
            "answer. Choose another --prompt_style"
        )
    behind = answered.rpartition(last["content"].strip())[2]
    if behind.strip() and asked.endswith(behind) and _always_opens(style, messages, answered, tokens):
        raise ValueError(
            "the chat template opens a further answer behind every conversation, whether it is asked to or not. Choose another "
            "--prompt_style, or download the checkpoint's newer files"
        )
    if train_on == "all" and len(segments) == 1 and any(m["role"] == "assistant" for m in history):
        raise ValueError("the prompt style writes earlier turns anew with each further one. Train with --train_on last")
    segments = [*segments, Segment(_close(answered[len(asked) :], last["content"], tokens)[0], True)]
    answers = [message for message in messages if message["role"] == "assistant"] if len(segments) > 2 else [last]
    for i, message in enumerate(answers):
        answer, segment = message["content"], segments[2 * i + 1]
        if segment.trained and _squeezed(answer) not in _squeezed(segment.text):
            raise ValueError(f"the prompt style leaves out a part of the answer {answer[:40]!r}. Choose another --prompt_style")
        if message.get("weight") == 0:
            segments[2 * i + 1] = Segment(segment.text, False)
    if not any(segment.trained for segment in segments):
        raise ValueError("the last answer has weight 0: nothing would be trained. Train with --train_on all")
    return segments


def _always_opens(style: Style, messages: Sequence[Message], answered: str, tokens: Mapping[str, str]) -> bool:
    """Whether what stands behind a conversation is the opening of a further answer: a question in its place removes it."""
    further = style.render([*messages, {"role": "user", "content": "-"}], True, tokens)
    return style.render(messages, True, tokens) == answered and not further.startswith(answered)


def _close(rendered: str, content: str, tokens: Mapping[str, str]) -> tuple[str, str]:
    """An answer as rendered, with EOS unless the style closes the turn, and the white space behind it, which none generates."""
    if rendered.endswith(content):
        return rendered + tokens.get("eos_token", ""), ""
    answer = rendered.rstrip()
    closing = tokens.get("eos_token", "") if _squeezed(answer).endswith(_squeezed(content)) else ""
    return answer + closing, rendered[len(answer) :]


def _squeezed(text: str) -> str:
    """Without white space, which a template may change."""
    return "".join(text.split())


def closing_of(style: Style, tokens: Mapping[str, str]) -> str:
    """What stands behind a trained answer: EOS, or what the style closes a turn with."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\u2603"}]
    return conversation(style, turns, tokens, "all")[-1].text.rpartition("\u2603")[2]


def encode(segments: Sequence[Segment], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Token ids, and for each whether it is trained.

    An answer is tokenized apart from the prompt that it is generated after, together with what follows: then all other
    boundaries lie where they lie in the whole text. A token that would reach over the end of an answer is cut there.
    """
    ids = tokenizer.encode(segments[0].text)
    trained = [False] * len(ids)
    for i in range(1, len(segments), 2):
        own = tokenizer.encode_more(segments[i].text)
        more = own
        if i + 1 < len(segments):
            more = tokenizer.encode_more(segments[i].text + segments[i + 1].text)
            if more[: len(own)] != own:
                more = own + tokenizer.encode_more(segments[i + 1].text)
        ids += more
        trained += [segments[i].trained] * len(own) + [False] * (len(more) - len(own))
    return ids, trained


def stop_strings(style: str, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Texts that end an answer in the style of a name, beside EOS: a further turn's beginning, and a closing in plain text."""
    found = prompt_style(style, tokenizer)
    closing = closing_of(found, tokenizer.special_tokens).strip()
    is_plain = bool(closing) and bool(tokenizer.decode(tokenizer.encode_more(closing)[:1]))  # special tokens are not decoded
    return (*(found.stop if isinstance(found, Turns) else ()), *([closing] if is_plain else []))


def prompt_ids(style: str, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids that a model is given to answer a conversation, in the style of a name."""
    ids, _ = encode(prompt(prompt_style(style, tokenizer), messages, tokenizer.special_tokens), tokenizer)
    if not ids and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id]
    if not ids:
        raise ValueError("the prompt is empty and this tokenizer has no BOS to start from. Give a --prompt")
    return ids


def end_ids(style: str, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end an answer: EOS, and the special token with which the style closes a turn, as `<|im_end|>`."""
    answer = "the answer"
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
    rendered = prompt_style(style, tokenizer).render(turns, False, tokenizer.special_tokens)
    closing = tokenizer.encode_more(rendered.rpartition(answer)[2].strip())[:1]
    return tokenizer.eos_ids if tokenizer.decode(closing) else tokenizer.eos_ids.union(closing)
