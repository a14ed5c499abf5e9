"""Options of the server and the chat."""

from dataclasses import dataclass
from typing import Any, Literal

from lit_llm.args.base import Rules, bounds, template_rules
from lit_llm.args.generate import ModelArgs, SamplingArgs


@dataclass(frozen=True)
class ServeArgs(ModelArgs):
    """Server"""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 accepts other machines."""
    port: int = 8080
    """Port to listen on."""
    api_key: str | None = None
    """Key that each request must send as `Authorization: Bearer KEY`. Other users of the machine can read a command line: set
    LIT_LLM_API_KEY in the environment instead."""
    model_name: str | None = None
    """Name of the model in requests. Default: the name of its folder."""
    prompt_style: str | None = None
    """Style of conversations. Default: that of the finetuning, else the checkpoint's chat template, else alpaca."""
    template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template as a JSON object, e.g. {"enable_thinking": false}; `chat_template_kwargs` of a request are
    preferred. Default: those of the finetuning."""
    max_batch_size: int = 8
    """Requests answered at the same time; further ones wait."""
    max_queue: int = 256
    """Requests that may wait; further ones are refused (429)."""
    max_length: int = 4096
    """Longest prompt and answer together, in tokens; at most the model's context. Memory for their keys and values is reserved
    max_batch_size times."""
    kv_cache: Literal["int8"] | None = None
    """Hold keys and values in 8 bits."""
    max_new_tokens: int = 2048
    """Longest answer that a request may ask for, in tokens."""
    max_body_size: int = 1_000_000
    """Largest request, in bytes."""
    timeout: float = 300
    """Longest time from a request to the end of its answer, in seconds."""

    def rules(self) -> Rules:
        return [
            *super().rules(),
            *template_rules(self),
            *bounds(self, "max_batch_size", "max_queue", "max_length", "max_new_tokens", "max_body_size", "timeout", above=0),
            *bounds(self, "port", at_least=0, at_most=65535),
            (self.api_key == "", "`api_key` is empty. Omit it to serve without a key"),
        ]


@dataclass(frozen=True)
class ChatArgs(SamplingArgs, ModelArgs):
    """Model and answers"""

    system: str | None = None
    """System prompt of the conversation. Default: the prompt style's own."""
    prompt_style: str | None = None
    """Style of the conversation. Default: that of the finetuning, else the checkpoint's chat template, else alpaca."""
    template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template as a JSON object, e.g. {"enable_thinking": false}. Default: those of the finetuning."""
    max_new_tokens: int = 512
    """Longest answer, in tokens; shorter where the context ends."""

    def rules(self) -> Rules:
        return [*super().rules(), *template_rules(self), *bounds(self, "max_new_tokens", above=0)]
