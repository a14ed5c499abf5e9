"""Proof of GGUF files by llama.cpp itself: token ids, likelihoods and ends of answers are those of the model that was written.

llama.cpp comes as the prebuilt package `xllamacpp` (https://github.com/xorbitsai/xllamacpp), whose server listens on loopback.
"""

import http.client
import importlib
import importlib.util
import json
import math
import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.checkpoint.gguf_config import architecture_of, representable
from lit_llm.errors import CheckpointError
from lit_llm.model.gpt import GPT
from lit_llm.text.conversation import prompt_ids, question
from lit_llm.text.ending import Ending
from lit_llm.text.styles import Message
from lit_llm.text.tokenizer import Tokenizer

UNPROVEN = (
    "not proved: llama.cpp is not installed. To let it read the file and compare, install it (pip install xllamacpp) and run "
    "this command again"
)
N_LINES = 10_000
_N_TOKENS = 64
_CONTEXT = 512
_N_PROBS = 512

# Mean KL divergence, in nats per token, of llama.cpp's likelihoods from those in float32. A wrong order of rows or a wrong
# constant makes whole nats; rounding makes 1e-6 in f32 (llama.cpp tabulates GELU in float16) and 0.1 in q4_0.
_MAX_KL = {"f32": 1e-3, "f16": 1e-2, "bf16": 3e-2, "q8_0": 5e-2, "q4_0": 1.0}

QUESTIONS = [
    "What is the capital of France?", "Write a haiku about rain.", "Name three primary colours.", "What is 7 plus 5?",
    "Translate 'good morning' into Spanish.", "Why is the sky blue? Answer in one sentence.", "List the days of the week.",
    "Who wrote Hamlet?", "Explain photosynthesis to a child.", "What is the opposite of hot?", "Count from one to ten.",
    "Give me a recipe for pancakes.", "What is the largest planet?", "Write a short poem about the sea.",
    "How many legs does a spider have?", "Describe a sunset in two sentences.",
]  # fmt: skip
_WORDS = """bird book bread bridge candle cat chair city clock cloud coffee desert doctor dog door dream engine farm fire fish
flower forest friend garden glass gold house ice island key lamp leaf letter lion market milk moon mountain music night ocean
orange paper pencil piano planet queen rabbit rain ring river road rose salt sand school sea shadow ship shoe silver sister
snow song spoon spring star stone storm summer sugar sun table tea teacher tiger train tree wall water whale wind window
winter""".split()
ENDING_QUESTIONS = [*QUESTIONS, *(f"Use the word '{word}' in a short sentence." for word in _WORDS)]
"""Their answers are counted by whether they end: 100 of them, or fewer if the answers are long."""
_N_LONGEST = 256
_N_ENDING_TOKENS = 3000


@dataclass(frozen=True)
class Proof:
    """How a file in llama.cpp compares with the model in float32."""

    kind: str
    size: int
    """Bytes of the file."""
    n_lines: int
    """Lines with the same token ids: all that were compared."""
    n_prompts: int
    """Questions, of `QUESTIONS`, that llama.cpp makes the same prompt of by the template in the file."""
    n_tokens: int
    """Positions of the figures that follow."""
    kl: float
    """Mean KL divergence, in nats per token."""
    top1: float
    """Share of positions with the same most likely token."""
    largest: float
    """Largest difference of the log-likelihood of one of the tokens that are likely."""
    n_ended: int
    """Answers that ended by themselves, out of `n_answers`, within 256 tokens."""
    n_answers: int
    """100, or fewer if they have 3,000 tokens together."""


def is_installed() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None


class LlamaCpp:
    """A GGUF file in llama.cpp, on the CPU.

    Raises:
        CheckpointError: if llama.cpp cannot load it.
    """

    def __init__(self, path: Path, adapter: Path | None = None, context: int = _CONTEXT, precise: bool = True) -> None:
        xllamacpp: Any = importlib.import_module("xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
        params.warmup, params.fit_params, params.verbosity = False, False, -1
        if precise:  # by default keys, values and scores are float16
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if adapter is not None:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise CheckpointError(
                f"llama.cpp cannot load {adapter or path}: {error}. Use the format of Hugging Face"
            ) from error
        self._address = self._server.listening_address.removeprefix("http://")

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self._address)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = json.loads(answer.read())
        connection.close()
        if answer.status != 200:
            raise CheckpointError(f"llama.cpp refuses {path}: {content}")
        return content

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, with BOS if the file says so."""
        return self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of the prompt that the template in the file makes of a conversation."""
        return self.encode(self._post("/apply-template", {"messages": messages})["prompt"])

    def complete(self, ids: Sequence[int], n: int, n_probs: int = 0, **more: Any) -> dict[str, Any]:
        """Return the greedy continuation by at most `n` tokens, in the form of llama.cpp's server."""
        body = {"prompt": list(ids), "n_predict": n, "temperature": 0, "n_probs": n_probs, "return_tokens": True}
        return self._post("/completion", body | more)

    def continuation(self, ids: Sequence[int], n: int, n_probs: int) -> list[dict[str, Any]]:
        """Return the likelihoods of each token of a greedy continuation by at most `n` tokens.

        The server reports none for a part of a character. So tokens are asked for one by one, up to such a one.
        """
        ids, steps = list(ids), []
        for _ in range(n):
            answer = self.complete(ids, 1, n_probs)
            found = answer.get("completion_probabilities", [])
            steps += found
            if answer["stop_type"] == "eos" or not found:
                break
            ids.append(steps[-1]["id"])
        return steps

    def close(self) -> None:
        del self._server


def prove(
    llama: LlamaCpp, path: Path, kind: str, model: GPT, tokenizer: Tokenizer, style: str, ending: Ending, n_lines: int = N_LINES
) -> Proof:
    """Compare a file in llama.cpp with the model in float32 that it was written from.

    Raises:
        CheckpointError: if token ids differ, a token does not end an answer, or likelihoods differ by more than the type does.
    """
    for line in sample_lines(tokenizer, n_lines):
        if (found := llama.encode(line)) != (expected := tokenizer.encode(line)):
            raise CheckpointError(
                f"llama.cpp encodes {line!r} as {found}, the model's tokenizer as {expected}. Use the format of Hugging Face"
            )
    for i in sorted(ending.ids):
        forced = llama.complete([tokenizer.encode("a")[-1]], 3, logit_bias=[[i, 1000.0]])
        if forced["stop_type"] != "eos":
            raise CheckpointError(f"llama.cpp does not end an answer at {tokenizer.token_string(i)!r}, token {i}")
    context = min(representable(model.config, architecture_of(model.config)).block_size, _CONTEXT)
    whole = [prompt_ids(style, tokenizer, question(text)) for text in ENDING_QUESTIONS]
    n_prompts = sum(llama.prompt(question(text)) == ids for text, ids in zip(QUESTIONS, whole, strict=False))
    prompts = [ids[-(context // 2) :] for ids in whole]
    totals: list[Tensor] = []
    for prompt in prompts[: len(QUESTIONS)]:
        steps = llama.continuation(prompt, min(_N_TOKENS, context - len(prompt) - 1), _N_PROBS)
        totals += compare(model, prompt, steps)
    n_ended, n_answers = count_ended(llama, prompts, context)
    kl, same, largest = torch.stack(totals).unbind(1)
    proof = Proof(
        kind, path.stat().st_size, n_lines, n_prompts, len(totals), kl.mean().item(), same.mean().item(), largest.max().item(),
        n_ended, n_answers,
    )  # fmt: skip
    if not proof.kl <= _MAX_KL[kind]:
        raise CheckpointError(
            f"{path.name} in llama.cpp differs from the model by {proof.kl:.2g} nats per token, where {kind} allows "
            f"{_MAX_KL[kind]:.2g}, and agrees on {proof.top1:.1%} of the most likely tokens. Use the format of Hugging Face"
        )
    return proof


def count_ended(llama: LlamaCpp, prompts: Sequence[Sequence[int]], context: int) -> tuple[int, int]:
    """Return how many greedy answers ended within 256 tokens and `context`, and how many were asked for."""
    n_ended = n_answers = n_tokens = 0
    for prompt in prompts:
        answer = llama.complete(prompt, min(_N_LONGEST, context - len(prompt) - 1))
        n_ended += answer["stop_type"] == "eos"
        n_answers += 1
        n_tokens += answer["tokens_predicted"]
        if n_tokens >= _N_ENDING_TOKENS:
            break
    return n_ended, n_answers


@torch.no_grad()
def compare(model: GPT, prompt: Sequence[int], steps: Sequence[dict[str, Any]]) -> list[Tensor]:
    """Return KL divergence, whether the most likely token is the same, and the largest difference, for each token."""
    if not steps:
        return []
    ids = [*prompt, *(step["id"] for step in steps)]
    ours = model(torch.tensor([ids[:-1]]))[0, len(prompt) - 1 :].double().log_softmax(-1)
    rows = []
    for expected, step in zip(ours, steps, strict=True):
        listed = step["top_logprobs"]
        q = torch.tensor([entry["logprob"] for entry in listed], dtype=torch.float64)
        p = expected[[entry["id"] for entry in listed]]
        kl = (p.exp() * (p - q)).sum()
        rest_p, rest_q = 1 - p.exp().sum(), 1 - q.exp().sum()
        if rest_p > 1e-9 and rest_q > 1e-9:  # the other tokens count as one: a lower bound
            kl += rest_p * (rest_p / rest_q).log()
        likely = p > math.log(1e-3)
        largest = (p - q)[likely].abs().max() if likely.any() else torch.zeros((), dtype=torch.float64)
        rows.append(torch.stack((kl, (expected.argmax() == listed[0]["id"]).double(), largest)))
    return rows


def sample_lines(tokenizer: Tokenizer, n: int) -> list[str]:
    """Return lines of tokens of the vocabulary and of characters of many kinds, in the normal form that llama.cpp presumes."""
    draw = random.Random(0)
    kinds = [(0x21, 0x7E), (0x30, 0x39), (0xC0, 0x24F), (0x391, 0x3C9), (0x410, 0x44F), (0x4E00, 0x9FA5), (0x1F600, 0x1F64F)]
    spaces = [" ", "  ", "\n", "\n\n", "\t", " \n ", "\r\n"]
    lines = []
    for _ in range(n):
        parts = []
        for _ in range(draw.randint(1, 12)):
            if draw.random() < 0.6:
                part = tokenizer.decode_more([draw.randrange(tokenizer.vocab_size)])
            else:
                first, last = draw.choice(kinds)
                part = "".join(chr(draw.randint(first, last)) for _ in range(draw.randint(1, 8)))
            parts += [part, draw.choice(["", "", *spaces])]
        line = unicodedata.normalize("NFC", "".join(parts).replace("\ufffd", "").replace("\0", ""))
        lines.append(line)
    return lines


def table(proofs: Sequence[Proof]) -> str:
    """Return the figures as a table in Markdown."""
    rows = [
        "| type | size | equal token ids | equal prompts | KL, nats per token | same top token | largest difference | "
        "answers that ended |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for p in proofs:
        rows.append(
            f"| {p.kind} | {p.size / 1e6:.1f} MB | {p.n_lines} of {p.n_lines} lines | "
            f"{p.n_prompts} of {len(QUESTIONS)} | {p.kl:.1e} | {p.top1:.2%} of {p.n_tokens} | {p.largest:.1e} | "
            f"{p.n_ended} of {p.n_answers} |"
        )
    return "\n".join(rows) + "\n"


def other_prompts(proofs: Sequence[Proof]) -> str | None:
    """Return a line about prompts that the template in the file does not make as the model's own does, if there are any."""
    n = len(QUESTIONS) - min((p.n_prompts for p in proofs), default=len(QUESTIONS))
    if n == 0:
        return None
    return (
        f"llama.cpp makes another prompt of {n} of {len(QUESTIONS)} questions than the model was trained on: it always puts a "
        "space behind a special token of SentencePiece, or its template engine renders otherwise. Send it the token ids, or "
        "compare its /apply-template and /tokenize"
    )
