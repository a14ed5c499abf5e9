"""Prompt styles: from a conversation to the strings that a model reads, and which of them are trained.

A style is a row of the table in `styles.py`, or a checkpoint's own Jinja chat template. Training and inference read the same
segments: the tokens before an answer are the same when it is trained and when it is generated.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Literal, NamedTuple

from lit_llm.errors import DataError, OptionError
from lit_llm.text.answers import PROBE, Answer, answers_from_last, check_rendering, closed, last_answer, runs, squeezed
from lit_llm.text.chat_template import ChatTemplate
from lit_llm.text.rendered_calls import lost_call
from lit_llm.text.styles import STYLES, Message, Style
from lit_llm.text.thoughts import FIELDS, Form, length_of_thought, split_thought, without_thought
from lit_llm.text.tokenizer import Tokenizer

TrainOn = Literal["all", "last", "answers", "thoughts"]

CHAT_TEMPLATE = "chat_template"

READ = ("role", "content", "input", "weight")
MEANT = frozenset({"tools", "functions", "tool_calls"})
"""Fields without which an answer has another meaning: each must be rendered."""


def prompt_style(name: str, tokenizer: Tokenizer | None = None) -> Style:
    """Return the style of this name; `chat_template` is that of the tokenizer's checkpoint.

    Raises:
        OptionError: if the style does not exist, or the checkpoint has no chat template.
    """
    if name == CHAT_TEMPLATE and tokenizer is not None:
        if tokenizer.chat_template is None:
            raise OptionError(_no_default(tokenizer) or "the checkpoint has no chat template. Use another `prompt_style`")
        return ChatTemplate(tokenizer.chat_template, json.dumps(tokenizer.template_kwargs, sort_keys=True))
    if name not in STYLES:
        raise OptionError(f"prompt style {name!r} is not known. Use one of: {CHAT_TEMPLATE}, {', '.join(sorted(STYLES))}")
    return STYLES[name]


def set_template_kwargs(tokenizer: Tokenizer, kwargs: Mapping[str, Any] | None, style: str | None) -> None:
    """Add variables to those that the checkpoint's chat template is rendered with.

    Raises:
        OptionError: if the style of this name is another, or the template does not have one of the names.
    """
    if not kwargs:
        return
    if style != CHAT_TEMPLATE or tokenizer.chat_template is None:
        raise OptionError(f"`template_kwargs` are for the checkpoint's chat template; the prompt style is {style}. Omit them")
    for name in kwargs:
        if not re.search(rf"\b{re.escape(name)}\b", tokenizer.chat_template):
            raise OptionError(f"`template_kwargs`: the chat template does not read {name!r}. Check the name, or omit it")
    tokenizer.template_kwargs = {**tokenizer.template_kwargs, **kwargs}


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
    parts: Sequence[tuple[int, int]] | None = None
    """The trained characters, each part from the first to the one after the last; None: all of them."""


def question(instruction: str, input: str = "", system: str = "") -> list[Message]:
    """Return the conversation that an instruction opens."""
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": instruction, "input": input}]


def prompt(style: Style, messages: Sequence[Message], tokens: Mapping[str, Any]) -> list[Segment]:
    """Render `messages` up to the next answer: prompts at even places, earlier answers at odd ones.

    Earlier answers that are rendered differently from how they were asked and trained, as by templates that drop thoughts from
    the history, belong to the first segment.
    """
    whole = style.render(messages, True, tokens)
    next_answer = Answer([*messages, PROBE[-1]], whole, whole)
    *earlier, _ = next(runs(chain([next_answer], answers_from_last(style, messages, tokens))))
    segments, after = _segments(style, earlier, tokens)
    seen = earlier[-1].answered if earlier else ""
    return [*segments, Segment(after + whole[len(seen) :], False)]


def _segments(style: Style, run: Sequence[Answer], tokens: Mapping[str, Any]) -> tuple[list[Segment], str]:
    """Return the prompts and answers of a run, none of them trained, and the white space after the last one."""
    segments: list[Segment] = []
    seen, after = "", ""
    for answer in run:
        text, rest = closed(style, answer, tokens)
        segments += [Segment(after + answer.asked[len(seen) :], False), Segment(text, False)]
        seen, after = answer.answered, rest
    return segments, after


def documents(style: Style, messages: Sequence[Message], tokens: Mapping[str, Any], train_on: TrainOn) -> list[list[Segment]]:
    """Render a conversation that ends in an answer: prompts at even places, answers at odd ones.

    It is one document, unless the style renders earlier answers differently once others follow: each run of answers that it
    renders alike is then a document of its own, which begins with the history as these answers are asked. With `train_on` last,
    only the last document is returned. An answer with a `weight` of 0 is not trained.

    Raises:
        LitError: if the last answer is the only one to train and has weight 0, or the style renders an answer differently from
            the prompt that it follows.
    """
    if train_on == "last" and messages[-1].get("weight") == 0:
        raise DataError("the last answer has weight 0: nothing would be trained. Train with `train_on` all")
    found: list[list[Segment]] = []
    for run in runs(answers_from_last(style, messages, tokens)):
        segments, _ = _segments(style, run, tokens)
        for i, answer in enumerate(run):
            if answer.message.get("weight") != 0 and (train_on != "last" or len(answer.messages) == len(messages)):
                (before, *_), (text, *_) = segments[2 * i : 2 * i + 2]
                _check_answer(style, answer, before, text, tokens)
                segments[2 * i + 1] = Segment(text, True, _trained_parts(style, answer, text, tokens, train_on))
        found.insert(0, segments)
        if train_on == "last":
            break
    return found


def document_ends(style: Style, messages: Sequence[Message], tokens: Mapping[str, Any]) -> list[int]:
    """Return for each of the `documents` of a conversation, with `train_on` all, the number of turns up to its end."""
    ends = [len(run[-1].messages) for run in runs(answers_from_last(style, messages, tokens))]
    return ends[::-1]


def _check_answer(style: Style, answer: Answer, before: str, text: str, tokens: Mapping[str, Any]) -> None:
    """Raise OptionError unless an answer is rendered with all of its content, and after the prompt that it is asked with."""
    check_rendering(style, answer, tokens)
    message, content = answer.message, split_thought(answer.message)[1]
    if not ends_with_all_of(content, before, text):
        raise OptionError(f"the prompt style omits a part of the answer {content[:40]!r}. Use another `prompt_style`")
    if lost := lost_call(message, text):
        raise OptionError(f"the prompt style omits a part of the call of {lost[:40]!r}. Use another `prompt_style`")


def _trained_parts(
    style: Style, answer: Answer, text: str, tokens: Mapping[str, Any], train_on: TrainOn
) -> list[tuple[int, int]] | None:
    """Return the trained parts of an answer; None: all of it."""
    first, last = _part_of(style, answer, text, tokens, train_on)
    marks = marked_parts(style, answer, text, tokens)
    if marks is None:
        return None if (first, last) == (0, len(text)) else [(first, last)]
    return [(max(begin, first), min(end, last)) for begin, end in marks if max(begin, first) < min(end, last)]


def marked_parts(style: Style, answer: Answer, text: str, tokens: Mapping[str, Any]) -> list[tuple[int, int]] | None:
    """Return the parts of an answer that the `{% generation %}` marks of a template enclose; None if it has no marks.

    Whatever closes the turn is a part, if there is another: a model must learn to stop. The header of an answer that the prompt
    ends with is not, as a model never generates it.
    """
    if not isinstance(style, ChatTemplate):
        return None
    for messages in (answer.messages, [*answer.messages[:-1], without_thought(answer.message)]):
        found = style.marked(messages, tokens)
        if found is None:
            return None
        if found[0] == answer.answered:
            start = len(answer.asked)
            inside = [(max(begin - start, 0), min(end - start, len(text))) for begin, end in found[1]]
            parts = [(begin, end) for begin, end in inside if begin < end]
            closing = closing_of(style, tokens)
            closes = [(len(text) - len(closing), len(text))] if parts and closing and text.endswith(closing) else []
            return [*parts, *closes]
    return None  # the thought is not the template's


def _part_of(style: Style, answer: Answer, text: str, tokens: Mapping[str, Any], train_on: TrainOn) -> tuple[int, int]:
    """Return the first and the last character, plus 1, of the part of an answer that is trained."""
    if train_on in ("all", "last"):
        return (0, len(text))
    thought = "" if answer.omits_thought else split_thought(answer.message)[0]
    form = style.thoughts(tokens) if isinstance(style, ChatTemplate) else Form()
    n = length_of_thought(text, thought, form)
    if n is None:
        raise OptionError(f"the prompt style changes the thought {thought[:40]!r}: `train_on` {train_on} cannot find its end")
    if train_on == "answers":
        return (n, len(text))
    return (0, n) if thought.strip() else (0, 0)


def ends_with_all_of(content: str, before: str, answer: str) -> bool:
    """Return True if an answer has all of its content. The text before it may have the beginning: it may open a thought."""
    content, before, answer = map(squeezed, (content, before, answer))
    return content in answer or (before + answer).rfind(content) + len(content) > len(before)


def unrendered(style: Style, messages: Sequence[Message], tokens: Mapping[str, Any], variables: Mapping[str, Any]) -> list[str]:
    """Return the names of the variables, and of the fields of each turn, without which the style renders the same.

    The conversation is rendered up to the turn: a template may drop fields of earlier ones. "thought" is one that an answer
    lacks because it is asked without a thought, "system" a system turn that is not rendered, "marks" an answer only a part
    of which the template marks.
    """
    found = [name for name in variables if _is_same_without(style, messages, tokens, variables, name, None)]
    for i, message in enumerate(messages):
        names = [name for name in message if name not in READ and not (message["role"] == "assistant" and name in FIELDS)]
        found += [name for name in names if _is_same_without(style, messages[: i + 1], tokens, variables, None, name)]
    everything = {**variables, **tokens}
    if _omits_system(style, messages, everything):
        found.append("system")
    answers = [*answers_from_last(style, messages, everything)]
    return found + ["thought"] * sum(answer.omits_thought for answer in answers) + _excluded(style, answers, everything)


def _excluded(style: Style, answers: Sequence[Answer], tokens: Mapping[str, Any]) -> list[str]:
    """Return "marks" for each answer of which the marks of a template exclude a part."""
    found = []
    for answer in answers:
        text, _ = closed(style, answer, tokens)
        marks = marked_parts(style, answer, text, tokens)
        inside = {i for begin, end in marks or () for i in range(begin, end)}
        found += ["marks"] * (marks is not None and any(i not in inside for i, c in enumerate(text) if not c.isspace()))
    return found


def _omits_system(style: Style, messages: Sequence[Message], tokens: Mapping[str, Any]) -> bool:
    """Return True if a conversation begins with a system turn that the style does not render."""
    if messages[0]["role"] != "system":
        return False
    with suppress(OptionError):  # a template may need the turn
        return style.render(messages[1:], False, tokens) == style.render(messages, False, tokens)
    return False


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
    """Return True if the style renders the same without a variable, and without a field of the last turn.

    A variable may also change how an answer is asked for.
    """
    *history, last = messages
    is_answer = last["role"] == "assistant"
    rendered = [(messages, not is_answer), *([(history, True)] if is_answer and variable else [])]
    others = {name: value for name, value in variables.items() if name != variable}
    less = {name: value for name, value in last.items() if name != field}
    for turns, generation in rendered:
        whole = style.render(turns, generation, {**variables, **tokens})
        try:
            without = style.render([*turns[: len(history)], less][: len(turns)], generation, {**others, **tokens})
        except OptionError:  # a template may need the field
            return False
        if without != whole:
            return False
    return True


def closing_of(style: Style, tokens: Mapping[str, Any]) -> str:
    """Return the string after a trained answer: EOS, or the string that closes a turn in this style."""
    return closed(style, last_answer(style, PROBE, tokens), tokens)[0].rpartition(PROBE[-1]["content"])[2]


def encode(segments: Sequence[Segment], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Return token ids, and for each whether it is trained.

    An answer is tokenized apart from the prompt before it, as in generation, but together with the prompt after it: all other
    boundaries are then those of the whole string. A token that would reach over the end of an answer is cut there. If a part of
    an answer is trained, these are the tokens that end in it.
    """
    ids = tokenizer.encode(segments[0].text)
    trained = [False] * len(ids)
    for i in range(1, len(segments), 2):
        own, ends = _encoded_answer(segments[i], tokenizer)
        more = own
        if i + 1 < len(segments):
            more = tokenizer.encode_more(segments[i].text + segments[i + 1].text)
            if more[: len(own)] != own:
                more = own + tokenizer.encode_more(segments[i + 1].text)
        ids += more
        parts = segments[i].parts
        parts = [(0, len(segments[i].text))] if parts is None else parts
        trained += [segments[i].trained and any(first < end <= last for first, last in parts) for end in ends]
        trained += [False] * (len(more) - len(own))
    return ids, trained


def _encoded_answer(answer: Segment, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the token ids of an answer, and the character of it, counted from 1, that each ends with."""
    if answer.parts is not None:
        return tokenizer.encode_more_with_ends(answer.text)
    ids = tokenizer.encode_more(answer.text)
    return ids, [len(answer.text)] * len(ids)


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
