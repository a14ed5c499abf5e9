"""Cases of dense families after Llama: name, family, arguments of its transformers configuration next to the common sizes."""

from typing import Any

DENSE: list[tuple[str, str, dict[str, Any]]] = [
    ("helium", "helium", {"head_dim": 8}),
    ("helium-bias", "helium", {"head_dim": 8, "attention_bias": True, "mlp_bias": True, "vocab_size": 128}),
]
