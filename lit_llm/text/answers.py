"""The answers of a conversation as they are trained: each after exactly the prompt that it is asked with.

Chat templates may render an answer differently once others follow, for instance without its thought. `runs` finds the answers
that are still rendered alike in the prompt of the next one.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from lit_llm.errors import OptionError
from lit_llm.text.chat_template import ChatTemplate
from lit_llm.text.styles import Message, Style, Turns, split_system
from lit_llm.text.thoughts import CLOSED, OPENED, composed, n_common, split_thought, without_thought

PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "\u2603"})


class Answer(NamedTuple):
    """An answer, and what a style renders up to its beginning and up to its end."""

    messages: Sequence[Message]
    """The conversation; the answer is the last of them."""
    asked: str
    answered: str
    omits_thought: bool = False
    """The answer has a thought, and is asked without one."""

    @property
    def message(self) -> Message:
        return self.messages[-1]

    @property
    def follows(self) -> bool:
        return self.answered.startswith(self.asked)


def answers_from_last(style: Style, messages: Sequence[Message], tokens: Mapping[str, Any]) -> Iterator[Answer]:
    """Yield the answers of a conversation, the last one first."""
    # The parts of a style of the table do not depend on later ones: they are rendered once for all answers.
    before = list(accumulate(style.parts(messages, tokens))) if isinstance(style, Turns) else None
    n_opening = len(messages) - len(split_system(messages)[1])
    for i in reversed(range(len(messages))):
        if messages[i]["role"] != "assistant":
            continue
        upto = messages[: i + 1]
        if before is not None:
            yield Answer(upto, before[i - n_opening], before[i - n_opening + 1])
        else:
            yield last_answer(style, upto, tokens)


def last_answer(style: Style, messages: Sequence[Message], tokens: Mapping[str, Any]) -> Answer:
    """Return the answer that ends a conversation.

    A prompt that opens a thought gets one, if it is empty. A thought that the template omits from all turns is rendered between
    tags. A prompt that asks for an answer without a thought gets it so.
    """
    *history, message = messages
    asked, answered = style.render(history, True, tokens), style.render(messages, False, tokens)
    thought, _ = split_thought(message)
    if not isinstance(style, ChatTemplate) or (not thought.strip() and answered.startswith(asked)):
        return Answer(messages, asked, answered)
    is_closed = bool(CLOSED.search(asked))
    plain = style.render([*history, without_thought(message)], False, tokens)
    renders = answered != plain and squeezed(thought) in squeezed(answered)
    if renders and answered.startswith(asked) and not is_closed:
        return Answer(messages, asked, answered)
    can_compose = OPENED.search(asked) or (thought.strip() and not is_closed and style.thoughts(tokens).field is None)
    whole = composed(asked, thought, plain) if can_compose else None
    if whole is not None:
        return Answer(messages, asked, whole)
    return Answer(messages, asked, plain, bool(thought.strip()))


def runs(answers: Iterator[Answer]) -> Iterator[list[Answer]]:
    """Yield answers, from the last one, in groups whose members are rendered alike in the prompt of the last of them."""
    run: list[Answer] = []
    for answer in answers:
        if run and not (answer.follows and run[0].asked.startswith(answer.answered)):
            yield run
            run = []
        run.insert(0, answer)
    if run:
        yield run


def check_rendering(style: Style, answer: Answer, tokens: Mapping[str, Any]) -> None:
    """Raise OptionError unless the style renders the answer as the end of its prompt."""
    messages, asked, answered = answer.messages, answer.asked, answer.answered
    if not answer.follows:
        same = n_common(asked, answered)
        raise OptionError(
            f"the prompt style asks with {asked[same : same + 30]!r} but renders {answered[same : same + 30]!r} before an "
            "answer. Use another `prompt_style`"
        )
    content = split_thought(messages[-1])[1].strip()
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


def closed(style: Style, answer: Answer, tokens: Mapping[str, Any]) -> tuple[str, str]:
    """Return an answer with EOS unless the style closes the turn, and the white space after it, which is not generated.

    The prompt may have the beginning of the content.
    """
    rendered, content, eos = answer.answered[len(answer.asked) :], split_thought(answer.message)[1], tokens.get("eos_token", "")
    text = rendered.rstrip()
    if answer.message.get("tool_calls") or not content.strip():
        is_closed = text.endswith(eos) or not style.render(PROBE, False, tokens).rstrip().endswith(PROBE[-1]["content"])
        return text + ("" if is_closed else eos), rendered[len(text) :]
    if rendered and (rendered.endswith(content) or content.endswith(rendered)):
        return rendered + eos, ""
    own, whole = squeezed(text), squeezed(content)
    closing = eos if own.endswith(whole) or (own and whole.endswith(own)) else ""
    return text + closing, rendered[len(text) :]


def squeezed(text: str) -> str:
    """Remove white space, which a template may change."""
    return "".join(text.split())
