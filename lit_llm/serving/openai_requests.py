"""Requests of OpenAI's API that this server accepts.

Fields: https://platform.openai.com/docs/api-reference/chat and .../completions.
"""

import json
import random
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lit_llm.args.base import PENALTIES
from lit_llm.generation.sampling import Sampling, usable
from lit_llm.serving.errors import RequestError
from lit_llm.serving.limits import StopSequences, UnicodeStr, check_unicode

MAX_N = 16
MAX_MESSAGES = 2048  # as at OpenAI
MAX_TOP = 20
MAX_VARIABLES = 10_000

# Other fields that this server does not know are rejected. These do not change the answer, or ask for nothing with this value.
IGNORED = {
    "cache_prompt", "keep_alive", "metadata", "parallel_tool_calls", "prediction", "priority", "prompt_cache_key",
    "prompt_cache_retention", "request_id", "safety_identifier", "service_tier", "store", "user",
}  # fmt: skip
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "annotations": ([],), "bad_words": ([],), "best_of": (1,), "chat_template_content_format": ("auto", "string"),
    "documents": ([],), "early_stopping": (False,), "echo": (False,), "frequency_penalty": (0,), "function_call": ("none",),
    "functions": ([],), "ignore_eos": (False,), "include_reasoning": (True,), "include_stop_str_in_output": (False,),
    "length_penalty": (1,), "logit_bias": ({},), "min_tokens": (0,), "modalities": (["text"],), "presence_penalty": (0,),
    "reasoning_effort": ("none",), "response_format": ({"type": "text"},), "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,), "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],), "suffix": ("",), "tool_choice": ("none", "auto"), "tool_calls": ([],), "tools": ([],),
    "use_beam_search": (False,), "verbosity": ("medium",),
}  # fmt: skip

Json = dict[str, Any]


def _as_list(value: Any) -> Any:
    return [] if value is None else [value] if isinstance(value, str) else value


class StreamOptions(BaseModel):
    include_usage: bool | None = None


def check_extra(found: BaseModel, place: str = "") -> None:
    """Raise RequestError for a field that this server does not support."""
    for name, value in (found.model_extra or {}).items():
        if name not in IGNORED and value is not None and value not in WITHOUT_EFFECT.get(name, ()):
            raise RequestError(400, f"`{name}` is not supported by this server", place + name, "unsupported_parameter")


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
    top_k: int | None = Field(None, ge=-1)
    """0 and -1 switch it off, as in vLLM."""
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=PENALTIES[0], le=PENALTIES[1])

    def check_supported(self) -> None:
        """Raise RequestError for a field that this server does not support."""
        check_extra(self)
        if self.stream_options is not None and not self.stream:
            raise RequestError(400, "`stream_options` needs `stream`", "stream_options", "invalid_value")

    def samplings(self) -> list[Sampling]:
        """Return the sampling of each of the `n` answers to a prompt. OpenAI's default temperature is 1."""
        temperature, top_p = (1.0 if x is None else x for x in (self.temperature, self.top_p))
        temperature = usable(temperature) if top_p > 0 else 0.0
        top_k = self.top_k if self.top_k and self.top_k > 0 else None
        seed = random.getrandbits(62) if self.seed is None else self.seed
        return [
            Sampling(
                temperature=temperature, top_k=top_k, top_p=top_p or 1.0, min_p=self.min_p or 0.0,
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
    if not isinstance(content, list):
        return content
    return "".join(part if isinstance(part, str) else ContentPart.model_validate(part).text for part in content)


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[UnicodeStr | None, BeforeValidator(_joined)] = None
    name: UnicodeStr | None = None
    """Name of the participant; only templates of checkpoints may use it."""

    @model_validator(mode="after")
    def check_content(self) -> "ChatMessage":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"the message of the {self.role} has no content")
        return self

    def turn(self) -> dict[str, str]:
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.content or "", **({} if self.name is None else {"name": self.name})}


# What a template gets from elsewhere.
NO_VARIABLES = {"add_generation_prompt", "continue_final_message", "documents", "messages", "tools"}


def _check_variables(variables: dict[str, Any]) -> dict[str, Any]:
    if wrong := NO_VARIABLES & variables.keys():
        raise ValueError(f"{min(wrong)} cannot be set here")
    if len(check_unicode(json.dumps(variables, ensure_ascii=False))) > MAX_VARIABLES:
        raise ValueError(f"it is longer than {MAX_VARIABLES} characters")
    return variables


class ChatRequest(CommonRequest):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    # vLLM has these fields.
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_check_variables)] | None = None

    def check_supported(self) -> None:
        super().check_supported()
        for i, message in enumerate(self.messages):
            check_extra(message, f"messages.{i}.")
        if self.continue_final_message and self.add_generation_prompt:
            message = "`continue_final_message` and `add_generation_prompt` exclude each other. Specify one of them"
            raise RequestError(400, message, "continue_final_message", "invalid_value")
        if self.top_logprobs and not self.logprobs:
            raise RequestError(400, "`top_logprobs` needs `logprobs`", "top_logprobs", "invalid_value")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            message = "`max_tokens` is the old name of `max_completion_tokens`. Specify one of them"
            raise RequestError(400, message, "max_tokens")
