"""The price of weights in fewer bits: how far their predictions are from those of float32, on your model and data."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench.invariance import first_examples
from lit_llm.bench.measuring import machine, report, table
from lit_llm.checkpoint.load import load
from lit_llm.data.examples import Example, Pair

FORMATS: dict[str, dict[str, Any]] = {
    "--cpu_weights fp16": {"layout": "fp16"},
    "--cpu_weights int8": {"layout": "int8"},
    "--quantize bnb.int8": {"quantize": "bnb.int8"},
    "--quantize bnb.nf4": {"quantize": "bnb.nf4"},
}
COLUMNS = {
    "weights": "`{weights}`", "KL to float32": "{kl:.4f}", "same most likely token": "{same_token:.1%}",
    "perplexity": "{perplexity_change:+.1%}",
}  # fmt: skip


@torch.no_grad()
def measure(args: BenchmarkArgs) -> None:
    """Print, over all tokens of the examples, KL(float32 || rounded) in nats, the agreement and the change of perplexity."""
    assert args.checkpoint_dir and args.data_dir
    examples, _ = first_examples(args.checkpoint_dir, args.data_dir, args.n_examples)
    documents = list(documents_of(examples))
    exact, _ = load(args.checkpoint_dir, device="cpu", precision="32-true")
    rows = []
    for name, options in FORMATS.items():
        rounded, _ = load(args.checkpoint_dir, device="cpu", precision="32-true", **options)
        kl = loss = same = tokens = 0.0
        for ids in documents:
            p, q = (F.log_softmax(model(ids[None])[0, :-1].float(), dim=-1) for model in (exact, rounded))
            kl += (p.exp() * (p - q)).sum().item()
            same += (p.argmax(-1) == q.argmax(-1)).sum().item()
            loss += (p - q).gather(1, ids[1:, None]).sum().item()  # of the rounded model, beyond that of float32
            tokens += len(p)
        found = {"kl": kl / tokens, "same_token": same / tokens, "perplexity_change": math.exp(loss / tokens) - 1}
        rows.append({"weights": name, **found})
    report({**machine(), "tokens": int(tokens), "results": rows}, table(COLUMNS, rows))


def documents_of(examples: list[Example | Pair]) -> Iterator[torch.Tensor]:
    """Yield the token ids (T,) of each example; both of a pair."""
    for example in examples:
        for document in example.documents if isinstance(example, Pair) else [example]:
            yield document.ids.long()
