"""Prompt styles: from a conversation to a string."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lit_llm.errors import OptionError
from lit_llm.text.thoughts import Form, in_form

Message = Mapping[str, Any]
"""`role` (system, user, assistant, tool) and `content`; a user's also `input`, for styles that set it apart. A chat template
may render further fields."""

UNRENDERED = ("input", "weight")


class Style(Protocol):
    def render(self, messages: Sequence[Message], generation: bool, tokens: Mapping[str, Any]) -> str:
        """Render a conversation; with `generation`, up to the beginning of the model's next answer.

        Args:
            tokens: The strings of the special tokens, by names like eos_token, and other variables of a chat template.
        """
        ...


@dataclass(frozen=True)
class Turns:
    """A style as a row of the table. The slots `{user}`, `{input}`, `{system}`, `{bos}` and `{eos}` are filled in."""

    user: str
    """A user's turn, up to the beginning of the answer. `{system}` is empty except in the first."""
    answer: str = "{answer}{eos}"
    system: str = "{}\n\n"
    """The system message in its slot."""
    default_system: str = ""
    with_input: str = ""
    """Replaces `user` for a turn with further input; by default the input follows the instruction after an empty line."""
    default_system_with_input: str = ""
    first: str = ""
    """Before the first turn."""
    between: str = ""
    """Before each further turn of the user."""
    stop: tuple[str, ...] = ()
    """Beginnings of the next turn, which published models of the style write after an answer."""

    def render(self, messages: Sequence[Message], generation: bool, tokens: Mapping[str, Any]) -> str:
        return "".join(self.parts(messages, tokens))

    def parts(self, messages: Sequence[Message], tokens: Mapping[str, Any]) -> Iterator[str]:
        """Yield what precedes the first turn, and then each turn. Later turns do not change them."""
        slots = {"bos": tokens.get("bos_token", ""), "eos": tokens.get("eos_token", "")}
        system, messages = split_system(messages)
        yield self.first.format(**slots)
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                yield self.answer.format(answer=in_form(message, Form())["content"], **slots)
                continue
            if message["role"] != "user":
                raise OptionError(
                    f"the prompt style has no turns of the role {message['role']}. Use a `prompt_style` that does"
                )
            more = message.get("input", "")
            apart = bool(more and self.with_input)
            content = message["content"] if apart or not more else f"{message['content']}\n\n{more}"
            if i == 0 and system is None:
                system = (apart and self.default_system_with_input) or self.default_system
            opening = self.system.format(system, **slots) if i == 0 and system else ""
            turn = self.with_input if apart else self.user
            yield (self.between if i else "").format(**slots) + turn.format(user=content, input=more, system=opening, **slots)


def for_template(message: Message) -> dict[str, Any]:
    """Return a message as chat templates expect it: further input follows the content after an empty line."""
    more = {name: value for name, value in message.items() if name not in UNRENDERED}
    return {**more, "content": f"{message['content']}\n\n{message['input']}"} if message.get("input") else more


def split_system(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    """Return the system message that a conversation begins with, or None, and the turns after it."""
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


# Each as its model card or training code publishes it. A space or line break before the answer is part of `answer`:
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
