"""The prompt of a chat request.

Clients of OpenAI's API send messages in any order of roles. An unchanged checkpoint gets what its template renders; a style of
the table, and a finetuned model, get the alternating turns that they know.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lit_llm.errors import OptionError
from lit_llm.text.chat_template import ChatTemplate
from lit_llm.text.conversation import prompt_ids, prompt_style, start_ids
from lit_llm.text.styles import Message, Style
from lit_llm.text.tokenizer import Tokenizer

END = "END_OF_THE_UNFINISHED_TURN "  # put behind it to find it in the rendered text; a template may strip the space


def chat_prompt(
    style: str,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    finetuned: bool,
    opens: bool,
    continues: bool,
    variables: Mapping[str, Any],
    longest: int,
) -> list[int]:
    """Return the token ids of the prompt.

    Args:
        finetuned: The model was finetuned in this style.
        opens: Render the opening of another answer after the last turn.
        continues: End within the last turn, which the answer continues.
        variables: Further variables of a checkpoint's template.
        longest: A prompt of more tokens cannot be used. The turns of such a conversation are not rendered one by one.

    Raises:
        OptionError: if the style cannot render the conversation.
    """
    found, tokens = prompt_style(style, tokenizer), {**variables, **tokenizer.special_tokens}
    turns = alternating(messages)
    if isinstance(found, ChatTemplate) and not finetuned:
        try:
            text = _render(found, messages, tokens, opens, continues)
        except OptionError:
            if turns == messages:
                raise
            text = _render(found, turns, tokens, opens, continues)  # many templates refuse other orders of roles
        return tokenizer.encode(text) or start_ids(tokenizer)
    if not opens and not continues:
        raise OptionError("`add_generation_prompt` false needs `continue_final_message` true in this prompt style")
    if turns[-1]["role"] == "assistant" and not continues and not isinstance(found, ChatTemplate):
        turns.append({"role": "user", "content": ""})  # whose turn contains the opening of the next answer
    ids = tokenizer.encode(found.render(turns, True, tokens))
    if len(ids) > longest:
        return ids
    if not continues:
        return prompt_ids(style, tokenizer, turns, finetuned, variables)
    if turns[-1]["role"] != "assistant":
        raise OptionError("`continue_final_message` needs a last message of the assistant in this prompt style")
    asked, text = found.render(turns[:-1], True, tokens), _render(found, turns, tokens, False, True)
    if not text.startswith(asked):
        raise OptionError("the prompt style renders the last turn differently once it is answered. It cannot be continued")
    more = text[len(asked) :]
    return prompt_ids(style, tokenizer, turns[:-1], finetuned, variables) + (tokenizer.encode_more(more) if more else [])


def _render(style: Style, messages: Sequence[Message], tokens: Mapping[str, str], opens: bool, continues: bool) -> str:
    if not continues:
        return style.render(messages, opens, tokens)
    *history, last = messages
    rendered = style.render([*history, {**last, "content": last["content"] + END}], False, tokens)
    text, end, after = rendered.rpartition(END.strip())
    if not end:
        raise OptionError("the prompt style omits the last turn, which cannot be continued")
    return text if after.startswith(" ") else text.rstrip()  # as transformers' `apply_chat_template` does


def alternating(messages: Sequence[Message]) -> list[Message]:
    """Return an optional system message and then turns of user and assistant, the user first.

    Consecutive messages of one role are joined, later system messages belong to the user's turn, and a missing user's turn is
    empty.
    """
    turns: list[Message] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system" and any(turn["role"] != "system" for turn in turns):
            role = "user"
        if role == "assistant":
            content = content.strip()  # some styles write a space before an answer, which the model then generates
            if not turns or turns[-1]["role"] == "system":
                turns.append({"role": "user", "content": ""})
        if turns and turns[-1]["role"] == role:
            content = "\n\n".join(text for text in (turns.pop()["content"], content) if text)
        turns.append({"role": role, "content": content})
    if turns[-1]["role"] == "system":
        turns.append({"role": "user", "content": ""})
    return turns
