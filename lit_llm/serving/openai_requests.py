"""Requests of OpenAI's API as this server takes them, and log-probabilities in its shapes.

Fields: https://platform.openai.com/docs/api-reference/chat and .../completions.
"""

import random
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lit_llm.args.base import PENALTIES
from lit_llm.generation.sampling import Sampling, usable
from lit_llm.serving.engine import Token
from lit_llm.serving.errors import Refused
from lit_llm.serving.limits import Stops, Text, as_unicode

MAX_N = 16
MAX_TOP = 20
LOWEST = -9999.0  # OpenAI's word for a log-probability of minus infinity, which JSON cannot say

# Fields that this server does not know are refused, but for those that change no answer and values that ask for nothing.
HARMLESS = {
    "metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    "service_tier", "store", "user",
}  # fmt: skip
ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "echo": (False,), "frequency_penalty": (0,), "function_call": ("none",), "functions": ([],),
    "ignore_eos": (False,), "logit_bias": ({},), "min_tokens": (0,), "modalities": (["text"],), "presence_penalty": (0,),
    "reasoning_effort": ("none",), "response_format": ({"type": "text"},), "suffix": ("",), "tool_choice": ("none", "auto"),
    "tools": ([],),
}  # fmt: skip

Json = dict[str, Any]


def _one_or_more(value: Any) -> Any:
    return [] if value is None else [value] if isinstance(value, str) else value


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class Common(BaseModel):
    """What completions and chat completions share. A field that is null is as if it were not there."""

    model_config = ConfigDict(extra="allow")

    model: Text
    max_tokens: int | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1, le=MAX_N)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[Stops, BeforeValidator(_one_or_more)] = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1)
    # Not of OpenAI's API; its Python client sends them as `extra_body`.
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=PENALTIES[0], le=PENALTIES[1])

    def check_supported(self) -> None:
        """Raises Refused for a field that asks for what this server cannot do."""
        for name, value in (self.model_extra or {}).items():
            if name not in HARMLESS and value is not None and value not in ASKS_NOTHING.get(name, ()):
                raise Refused(400, f"{name} is not supported by this server", name, "unsupported_parameter")
        if self.stream_options is not None and not self.stream:
            raise Refused(400, "stream_options needs stream", "stream_options", "invalid_value")

    def samplings(self) -> list[Sampling]:
        """Settings of the `n` answers to a prompt. OpenAI's default temperature is 1."""
        temperature, top_p = (1.0 if x is None else x for x in (self.temperature, self.top_p))
        temperature = usable(temperature) if top_p > 0 else 0.0
        seed = random.getrandbits(62) if self.seed is None else self.seed
        return [
            Sampling(
                temperature=temperature, top_k=self.top_k, top_p=top_p or 1.0, min_p=self.min_p or 0.0,
                repetition_penalty=self.repetition_penalty or 1.0, seed=(seed + i) % 2**63,
            )
            for i in range(self.n or 1)
        ]  # fmt: skip


def _prompts(value: Any) -> list[str | list[int]]:
    def is_tokens(x: Any) -> bool:
        return isinstance(x, list) and all(type(i) is int for i in x)

    prompts = [value] if isinstance(value, str) or (value and is_tokens(value)) else value
    if not (isinstance(prompts, list) and prompts and all(isinstance(p, str) or is_tokens(p) for p in prompts)):
        raise ValueError("must be a text, a list of token ids, or a list of such")
    return [as_unicode(p) if isinstance(p, str) else p for p in prompts]


class CompletionRequest(Common):
    prompt: Annotated[list[Any], BeforeValidator(_prompts)]
    """Texts and lists of token ids; a single one may stand without its list."""
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP)

    def check_supported(self) -> None:
        super().check_supported()
        if self.best_of not in (None, self.n or 1):
            raise Refused(400, "best_of is supported where it equals n only", "best_of", "unsupported_parameter")


class Part(BaseModel):
    type: Literal["text"]
    text: Text


def _joined(content: Any) -> Any:
    parts = isinstance(content, list) and [Part.model_validate(part) for part in content]
    return "".join(part.text for part in parts) if parts else content


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Text, BeforeValidator(_joined)]

    def as_message(self) -> dict[str, str]:
        """A turn as the prompt styles know it. Some write a space before an answer, which the model then generates."""
        content = self.content.strip() if self.role == "assistant" else self.content
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(Common):
    messages: list[ChatMessage] = Field(min_length=1)
    """Prompt styles know turns of a user and a model alternately: those in a row of one role are joined."""
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP)

    def check_supported(self) -> None:
        super().check_supported()
        if self.top_logprobs and not self.logprobs:
            raise Refused(400, "top_logprobs needs logprobs", "top_logprobs", "invalid_value")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise Refused(400, "max_tokens is the old name of max_completion_tokens. Give one of them", "max_tokens")

    def turns(self) -> list[dict[str, str]]:
        """The messages as the prompt styles know them."""
        turns: list[dict[str, str]] = []
        for turn in (message.as_message() for message in self.messages):
            if turns and turns[-1]["role"] == turn["role"]:
                turns[-1]["content"] += f"\n\n{turn['content']}"
            else:
                turns.append(turn)
        return turns

    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def chat_logprobs(tokens: Sequence[Token], text_of: Callable[[int], str]) -> Json:
    def entry(text: str, log_prob: float) -> Json:
        return {"token": text, "logprob": max(log_prob, LOWEST), "bytes": list(text.encode())}

    content = []
    for token in tokens:
        top = [entry(text, log_prob) for text, log_prob in token.top(text_of)]
        content.append({**entry(token.text, token.score.log_prob), "top_logprobs": top})
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[Token], start: int, text_of: Callable[[int], str]) -> Json:
    """Parallel lists for tokens of which the first begins at `start` in the text."""
    texts = [token.text for token in tokens]
    top = [{text: max(log_prob, LOWEST) for text, log_prob in reversed(token.top(text_of))} for token in tokens]
    log_probs = [max(token.score.log_prob, LOWEST) for token in tokens]
    offsets = list(accumulate(map(len, texts), initial=start))[:-1]
    return {"tokens": texts, "token_logprobs": log_probs, "top_logprobs": top, "text_offset": offsets}
