"""Prompt styles: from a conversation to the text that a model reads, and which of it is trained.

A style is a row of the table below, or a checkpoint's own Jinja chat template. Training and inference read the same segments:
what a model is trained on up to an answer is, token by token, what it is asked with.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lit_llm.text.chat_template import ChatTemplate
from lit_llm.text.styles import STYLES, Message, Style, split_system
from lit_llm.text.tokenizer import Tokenizer

TrainOn = Literal["all", "last"]

CHAT_TEMPLATE = "chat_template"


STYLES["qwen"] = STYLES["chatml"]


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


def prompt_ids(style: str, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids that a model is given to answer a conversation, in the style of a name."""
    ids, _ = encode(prompt(prompt_style(style, tokenizer), messages, tokenizer.special_tokens), tokenizer)
    if not ids and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id]
    if not ids:
        raise ValueError("the prompt is empty and this tokenizer has no BOS to start from. Give a --prompt")
    return ids
