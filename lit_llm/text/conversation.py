"""Prompt styles: from a conversation to the strings that a model reads, and which of them are trained.

A style is a row of the table in `styles.py`, or a checkpoint's own Jinja chat template. Training and inference read the same
segments: the tokens before an answer are the same when it is trained and when it is generated.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from lit_llm.errors import DataError, OptionError
from lit_llm.text.chat_template import ChatTemplate
from lit_llm.text.rendered_calls import lost_call
from lit_llm.text.styles import STYLES, Message, Style, Turns, split_system
from lit_llm.text.tokenizer import Tokenizer

TrainOn = Literal["all", "last"]

CHAT_TEMPLATE = "chat_template"

_PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "\u2603"})

READ = ("role", "content", "input", "weight")
MEANT = frozenset({"reasoning_content", "reasoning", "thinking", "tools", "functions", "tool_calls"})
"""Fields without which an answer has another meaning: each must be rendered."""


def prompt_style(name: str, tokenizer: Tokenizer | None = None) -> Style:
    """Return the style of this name; `chat_template` is that of the tokenizer's checkpoint.

    Raises:
        OptionError: if the style does not exist, or the checkpoint has no chat template.
    """
    if name == CHAT_TEMPLATE and tokenizer is not None:
        if tokenizer.chat_template is None:
            raise OptionError(_no_default(tokenizer) or "the checkpoint has no chat template. Use another `prompt_style`")
        return ChatTemplate(tokenizer.chat_template)
    if name not in STYLES:
        raise OptionError(f"prompt style {name!r} is not known. Use one of: {CHAT_TEMPLATE}, {', '.join(sorted(STYLES))}")
    return STYLES[name]


def default_style(tokenizer: Tokenizer, is_text: bool) -> str:
    """Return the name of the style for a checkpoint and its data if none is given.

    Raises:
        OptionError: if the checkpoint has several chat templates, and none of them is the default.
    """
    if not is_text and tokenizer.other_templates:
        raise OptionError(_no_default(tokenizer))
    return CHAT_TEMPLATE if tokenizer.chat_template is not None else "none" if is_text else "alpaca"


def _no_default(tokenizer: Tokenizer) -> str:
    """Return an error for a checkpoint that has chat templates but no default one, else an empty string."""
    names = ", ".join(map(repr, tokenizer.other_templates))
    return names and (
        f"the chat templates of the checkpoint are called {names}, and none of them is called 'default'. Save the one to use "
        "as chat_template.jinja in its folder, or specify `prompt_style`"
    )


def fingerprint(style: Style, tokenizer: Tokenizer) -> str:
    """Return a checksum that changes with the rendering of the style. A template may render the date."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return hashlib.sha256(repr((style, style.render(turns, False, tokenizer.special_tokens))).encode()).hexdigest()


class Segment(NamedTuple):
    text: str
    trained: bool


def question(instruction: str, input: str = "", system: str = "") -> list[Message]:
    """Return the conversation that an instruction opens."""
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": instruction, "input": input}]


def prompt(style: Style, messages: Sequence[Message], tokens: Mapping[str, Any]) -> list[Segment]:
    """Render `messages` up to the next answer: prompts at even places, earlier answers at odd ones.

    Templates that drop thoughts from the history change earlier turns once another follows: the result is then one segment.
    """
    segments: list[Segment] = []
    seen, after = "", ""
    whole = style.render(messages, True, tokens)
    for message, asked, answered in _answers(style, messages, tokens):
        if not (asked.startswith(seen) and answered.startswith(asked)):
            return [Segment(whole, False)]
        answer, rest = _close(answered[len(asked) :], message, style, tokens)
        segments += [Segment(after + asked[len(seen) :], False), Segment(answer, True)]
        seen, after = answered, rest
    if not whole.startswith(seen):
        return [Segment(whole, False)]
    return [*segments, Segment(after + whole[len(seen) :], False)]


def _answers(style: Style, messages: Sequence[Message], tokens: Mapping[str, Any]) -> Iterator[tuple[Message, str, str]]:
    """Yield each answer with the conversation before it and up to its end, as rendered."""
    before = list(accumulate(style.parts(messages, tokens))) if isinstance(style, Turns) else None
    n_opening = len(messages) - len(split_system(messages)[1])
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            if before is not None:  # rendering each beginning would take time that grows with the square of the length
                yield message, before[i - n_opening], before[i - n_opening + 1]
            else:
                yield message, style.render(messages[:i], True, tokens), style.render(messages[: i + 1], False, tokens)


def conversation(style: Style, messages: Sequence[Message], tokens: Mapping[str, Any], train_on: TrainOn) -> list[Segment]:
    """Render a conversation that ends in an answer: prompts at even places, answers at odd ones.

    An answer with a `weight` of 0 is not trained.

    Raises:
        LitError: if no answer is trained, or the style renders an answer differently from the prompt that it follows.
    """
    *history, last = messages
    asked, answered = style.render(history, True, tokens), style.render(messages, False, tokens)
    _check_rendering(style, messages, asked, answered, tokens)
    answer, _ = _close(answered[len(asked) :], last, style, tokens)
    segments = [*prompt(style, history, tokens), Segment(answer, True)]
    answers = [message for message in messages if message["role"] == "assistant"]
    if len(segments) == 2 and len(answers) > 1:  # the earlier answers are part of the prompt
        if train_on == "all":
            raise OptionError("the prompt style changes earlier turns with each further one. Train with `train_on` last")
        answers = [last]
    for i, message in enumerate(answers):
        (before, _), (text, _), content = *segments[2 * i : 2 * i + 2], message["content"]
        is_trained = train_on == "all" or i == len(answers) - 1
        if is_trained and not ends_with_all_of(content, before, text):
            raise OptionError(f"the prompt style omits a part of the answer {content[:40]!r}. Use another `prompt_style`")
        if is_trained and (lost := lost_call(message, text)):
            raise OptionError(f"the prompt style omits a part of the call of {lost[:40]!r}. Use another `prompt_style`")
        segments[2 * i + 1] = Segment(text, is_trained and message.get("weight") != 0)
    if not any(segment.trained for segment in segments):
        raise DataError("the last answer has weight 0: nothing would be trained. Train with `train_on` all")
    return segments


def ends_with_all_of(content: str, before: str, answer: str) -> bool:
    """Return True if an answer has all of its content. The text before it may have the beginning: it may open a thought."""
    content, before, answer = map(squeezed, (content, before, answer))
    return content in answer or (before + answer).rfind(content) + len(content) > len(before)


def unrendered(style: Style, messages: Sequence[Message], tokens: Mapping[str, Any], variables: Mapping[str, Any]) -> list[str]:
    """Return the names of the variables, and of the fields of each turn, without which the style renders the same.

    The conversation is rendered up to the turn: a template may drop fields of earlier ones.
    """
    found = [name for name in variables if _is_same_without(style, messages, tokens, variables, name, None)]
    for i, message in enumerate(messages):
        names = [name for name in message if name not in READ]
        found += [name for name in names if _is_same_without(style, messages[: i + 1], tokens, variables, None, name)]
    return found


def check_rendered(style: Style, messages: Sequence[Message], tokens: Mapping[str, Any], variables: Mapping[str, Any]) -> None:
    """Raise DataError for a field of `MEANT` that the style does not render."""
    if lost := MEANT.intersection(unrendered(style, messages, tokens, variables)):
        raise DataError(
            f"the prompt style does not render {', '.join(map(repr, sorted(lost)))}, which would be ignored. Use a "
            "`prompt_style` that does, name the field as the chat template does, or remove it"
        )


def _is_same_without(
    style: Style,
    messages: Sequence[Message],
    tokens: Mapping[str, Any],
    variables: Mapping[str, Any],
    variable: str | None,
    field: str | None,
) -> bool:
    """Return True if the style renders the same without a variable, and without a field of the last turn."""
    generation = messages[-1]["role"] != "assistant"
    whole = style.render(messages, generation, {**variables, **tokens})
    others = {name: value for name, value in variables.items() if name != variable}
    last = {name: value for name, value in messages[-1].items() if name != field}
    with suppress(OptionError):  # a template may need the field
        return style.render([*messages[:-1], last], generation, {**others, **tokens}) == whole
    return False


def _check_rendering(style: Style, messages: Sequence[Message], asked: str, answered: str, tokens: Mapping[str, Any]) -> None:
    """Raise OptionError unless `answered`, the conversation, continues `asked`, its prompt, and ends with the answer."""
    if not answered.startswith(asked):
        same = next((i for i, (a, b) in enumerate(zip(asked, answered, strict=False)) if a != b), len(answered))
        raise OptionError(
            f"the prompt style asks with {asked[same : same + 30]!r} but renders {answered[same : same + 30]!r} before an "
            "answer. Use another `prompt_style`"
        )
    content = messages[-1]["content"].strip()
    behind = answered.rpartition(content)[2] if content else ""
    if not (behind.strip() and asked.endswith(behind)):
        return
    # The end looks like the opening of another answer. It is one if the template ignores whether it is asked for an opening,
    # and a further question removes it.
    further = style.render([*messages, {"role": "user", "content": "-"}], True, tokens)
    if style.render(messages, True, tokens) == answered and not further.startswith(answered):
        raise OptionError(
            "the chat template opens another answer after every conversation, even when not asked to. Use another "
            "`prompt_style`, or download the checkpoint's newer files"
        )


def _close(rendered: str, message: Message, style: Style, tokens: Mapping[str, Any]) -> tuple[str, str]:
    """Return an answer with EOS unless the style closes the turn, and the white space after it, which is not generated.

    The prompt may have the beginning of the content.
    """
    answer, content, eos = rendered.rstrip(), message["content"], tokens.get("eos_token", "")
    if message.get("tool_calls"):
        closed = answer.endswith(eos) or not style.render(_PROBE, False, tokens).rstrip().endswith(_PROBE[-1]["content"])
        return answer + ("" if closed else eos), rendered[len(answer) :]
    if rendered and (rendered.endswith(content) or content.endswith(rendered)):
        return rendered + eos, ""
    own, whole = squeezed(answer), squeezed(content)
    closing = eos if own.endswith(whole) or (own and whole.endswith(own)) else ""
    return answer + closing, rendered[len(answer) :]


def squeezed(text: str) -> str:
    """Remove white space, which a template may change."""
    return "".join(text.split())


def closing_of(style: Style, tokens: Mapping[str, Any]) -> str:
    """Return the string after a trained answer: EOS, or the string that closes a turn in this style."""
    return conversation(style, _PROBE, tokens, "all")[-1].text.rpartition(_PROBE[-1]["content"])[2]


def encode(segments: Sequence[Segment], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Return token ids, and for each whether it is trained.

    An answer is tokenized apart from the prompt before it, as in generation, but together with the prompt after it: all other
    boundaries are then those of the whole string. A token that would reach over the end of an answer is cut there.
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


def prompt_ids(
    style: str,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    finetuned: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return the token ids of the prompt that a conversation becomes in the style of this name.

    Args:
        finetuned: The model was finetuned in this style, and gets earlier answers as it was trained on them. Otherwise a
            checkpoint's template is rendered and tokenized as a whole, as transformers' `apply_chat_template` does.
        variables: Further variables of a checkpoint's template, such as `tools`.
    """
    found, tokens = prompt_style(style, tokenizer), {**(variables or {}), **tokenizer.special_tokens}
    if isinstance(found, ChatTemplate) and not finetuned:
        ids = tokenizer.encode(found.render(messages, True, tokens))
    else:
        ids, _ = encode(prompt(found, messages, tokens), tokenizer)
    return ids or start_ids(tokenizer)


def start_ids(tokenizer: Tokenizer) -> list[int]:
    """Return BOS, the start of an empty prompt."""
    if tokenizer.bos_id is None:
        raise OptionError("the prompt is empty and this tokenizer has no BOS to start from. Specify a `prompt`")
    return [tokenizer.bos_id]
