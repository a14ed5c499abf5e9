"""Options of the scripts that talk: the server and the chat."""

from dataclasses import dataclass
from typing import Literal

from lit_llm.args.base import sampling_rules
from lit_llm.args.generate import ModelArgs


@dataclass(frozen=True)
class ServeArgs(ModelArgs):
    """What to serve, where, and how much of it"""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 8080
    """Port to listen on."""
    api_key: str | None = None
    """Key that each request must carry as `Authorization: Bearer KEY`. Other users of the machine can read a command line:
    LIT_LLM_API_KEY in the environment does the same."""
    model_name: str | None = None
    """Name by which clients ask for the model; that of its folder if not given."""
    prompt_style: str | None = None
    """Style of conversations; what the model was finetuned with, else the checkpoint's chat template, else alpaca."""
    max_batch_size: int = 8
    """Requests that are answered at the same time; further ones wait."""
    max_queue: int = 256
    """Requests that may wait; further ones are refused (429)."""
    max_length: int = 4096
    """Tokens of a prompt and its answer at most; the model's context if that is shorter. Memory for the keys and values of as
    many is held for each of max_batch_size."""
    kv_cache: Literal["int8"] | None = None
    """Hold keys and values in 8 bits."""
    max_new_tokens: int = 2048
    """Tokens at most that a request may ask for."""
    max_body_size: int = 1_000_000
    """Bytes of a request at most."""
    timeout: float = 300
    """Seconds that an answer may take, from its request on."""

    def rules(self) -> list[tuple[bool, str]]:
        return [
            *super().rules(),
            *self.below(0, "max_batch_size", "max_queue", "max_length", "max_new_tokens", "max_body_size", "timeout"),
            (not 0 <= self.port <= 65535, f"`port` must be from 0 to 65535, found {self.port}"),
            (self.api_key == "", "`api_key` is empty. Leave it out to serve without a key"),
        ]


@dataclass(frozen=True)
class ChatArgs(ModelArgs):
    """Which model to talk to, and how it answers"""

    system: str | None = None
    """System text that opens the conversation; the prompt style's own if not given."""
    prompt_style: str | None = None
    """Style of the conversation; what the model was finetuned with, else the checkpoint's chat template, else alpaca."""
    max_new_tokens: int = 512
    """Tokens of an answer at most; less where the context ends."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int | None = None
    """Sample among the k likeliest tokens only."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities sum to at least this (https://arxiv.org/abs/1904.09751)."""
    seed: int = 1337
    """Seed of the samples."""

    def rules(self) -> list[tuple[bool, str]]:
        return [
            *super().rules(),
            *self.below(0, "max_new_tokens"),
            *self.below(0, "seed", allow_equal=True),
            *sampling_rules(self),
            (
                self.temperature == 0 and (self.top_k is not None or self.top_p < 1),
                "`temperature` 0 takes the likeliest token: `top_k` and `top_p` cannot act. Leave them out",
            ),
        ]
