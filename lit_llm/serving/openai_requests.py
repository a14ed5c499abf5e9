"""Requests of OpenAI's API that this server accepts.

Fields: https://platform.openai.com/docs/api-reference/chat and .../completions.
"""

import random
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lit_llm.args.base import PENALTIES
from lit_llm.generation.sampling import Sampling, usable
from lit_llm.serving.errors import RequestError
from lit_llm.serving.limits import StopSequences, UnicodeStr, check_unicode

MAX_N = 16
MAX_TOP = 20

# Other fields that this server does not know are rejected. These do not change the answer, or ask for nothing with this value.
IGNORED = {
    "metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    "service_tier", "store", "user",
}  # fmt: skip
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "echo": (False,), "frequency_penalty": (0,), "function_call": ("none",), "functions": ([],),
    "ignore_eos": (False,), "logit_bias": ({},), "min_tokens": (0,), "modalities": (["text"],), "presence_penalty": (0,),
    "reasoning_effort": ("none",), "response_format": ({"type": "text"},), "suffix": ("",), "tool_choice": ("none", "auto"),
    "tools": ([],),
}  # fmt: skip

Json = dict[str, Any]


def _as_list(value: Any) -> Any:
    return [] if value is None else [value] if isinstance(value, str) else value


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class CommonRequest(BaseModel):
    """Fields that completions and chat completions share. A field that is null counts as absent."""

    model_config = ConfigDict(extra="allow")

    model: UnicodeStr
    max_tokens: int | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1, le=MAX_N)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[StopSequences, BeforeValidator(_as_list)] = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1)
    # Not in OpenAI's API; its Python client sends them as `extra_body`.
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=PENALTIES[0], le=PENALTIES[1])

    def check_supported(self) -> None:
        """Raise RequestError for a field that this server does not support."""
        for name, value in (self.model_extra or {}).items():
            if name not in IGNORED and value is not None and value not in WITHOUT_EFFECT.get(name, ()):
                raise RequestError(400, f"`{name}` is not supported by this server", name, "unsupported_parameter")
        if self.stream_options is not None and not self.stream:
            raise RequestError(400, "`stream_options` needs `stream`", "stream_options", "invalid_value")

    def samplings(self) -> list[Sampling]:
        """Return the sampling of each of the `n` answers to a prompt. OpenAI's default temperature is 1."""
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
        raise ValueError("must be a string, a list of token ids, or a list of these")
    return [check_unicode(p) if isinstance(p, str) else p for p in prompts]


class CompletionRequest(CommonRequest):
    prompt: Annotated[list[Any], BeforeValidator(_prompts)]
    """Strings and lists of token ids; a single one needs no list around it."""
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP)

    def check_supported(self) -> None:
        super().check_supported()
        if self.best_of not in (None, self.n or 1):
            raise RequestError(400, "`best_of` is supported only if it equals `n`", "best_of", "unsupported_parameter")


class ContentPart(BaseModel):
    type: Literal["text"]
    text: UnicodeStr


def _joined(content: Any) -> Any:
    parts = isinstance(content, list) and [ContentPart.model_validate(part) for part in content]
    return "".join(part.text for part in parts) if parts else content


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[UnicodeStr, BeforeValidator(_joined)]


class ChatRequest(CommonRequest):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP)

    def check_supported(self) -> None:
        super().check_supported()
        if self.top_logprobs and not self.logprobs:
            raise RequestError(400, "`top_logprobs` needs `logprobs`", "top_logprobs", "invalid_value")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            message = "`max_tokens` is the old name of `max_completion_tokens`. Specify one of them"
            raise RequestError(400, message, "max_tokens")

    def turns(self) -> list[dict[str, str]]:
        """Return the messages as prompt styles expect them: of alternating roles. Consecutive messages of a role are joined."""
        turns: list[dict[str, str]] = []
        for message in self.messages:
            role = "system" if message.role == "developer" else message.role
            # Some styles write a space before an answer, which the model then generates.
            content = message.content.strip() if role == "assistant" else message.content
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"] += f"\n\n{content}"
            else:
                turns.append({"role": role, "content": content})
        return turns
