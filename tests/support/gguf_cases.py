"""Models of the families that GGUF has an architecture for, and a vocabulary for models without a tokenizer."""

from dataclasses import replace
from typing import Any

from families import CASES, Case

_BY_NAME = {case.name: case for case in CASES}


def _changed(name: str, **sizes: Any) -> Case:
    case = _BY_NAME[name]
    return replace(case, sizes={**case.sizes, **sizes})


_CAPS: dict[str, Any] = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16}
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_theta": 5e5,
}  # fmt: skip

# Each case, and whether the GGUF loader of transformers reads it right: it has fewer architectures, and ignores scaled RoPE,
# head sizes and biases of some.
GGUF_CASES = [
    (_BY_NAME["llama"], True),
    (_BY_NAME["llama-padded"], True),
    (_BY_NAME["llama-mqa-bias-tied"], False),
    (_BY_NAME["llama-head-dim"], True),
    (_BY_NAME["llama-linear"], False),
    (_BY_NAME["llama-yarn"], False),
    (_changed("llama", head_dim=64, rope_parameters=_LLAMA3, max_position_embeddings=256), False),
    (_BY_NAME["mistral"], True),
    (_BY_NAME["mixtral"], False),
    (_BY_NAME["qwen2"], True),
    (_BY_NAME["qwen2.5-yarn"], False),
    (_changed("qwen3", head_dim=128), True),
    (_BY_NAME["qwen3_moe"], False),
    (_BY_NAME["gemma"], False),
    (_changed("gemma2", **_CAPS), False),
    (_changed("gemma3_text", query_pre_attn_scalar=16, num_hidden_layers=7, sliding_window_pattern=6), False),
    (_BY_NAME["phi"], False),
    (_BY_NAME["phi3"], True),
    (_BY_NAME["phi3-longrope"], False),
    (_BY_NAME["phi4-mini"], False),
    (_BY_NAME["olmo-clip"], False),
    (_BY_NAME["olmo2"], False),
    (_changed("smollm3", no_rope_layer_interval=4), False),
    (_BY_NAME["stablelm"], True),
    (_BY_NAME["gpt_neox-sequential"], False),
    (_BY_NAME["pythia"], False),
    (_BY_NAME["falcon-7b"], True),
    (_BY_NAME["falcon-40b"], False),
    (_BY_NAME["gpt2"], False),
    (_BY_NAME["santacoder"], False),
    (_BY_NAME["starcoder2"], True),
]


def vocabulary_of(n_rows: int) -> dict[str, Any]:
    """Metadata of a tokenizer with a letter per row, whose end is the last row."""
    tokens = [chr(256 + i) for i in range(n_rows)]
    return {
        "general.name": "tiny",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * n_rows,
        "tokenizer.ggml.merges": [f"{tokens[0]} {tokens[1]}"],
        "tokenizer.ggml.eos_token_id": n_rows - 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
