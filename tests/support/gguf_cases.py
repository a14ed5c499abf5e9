"""Models of the families that GGUF has an architecture for, and a vocabulary for models without a tokenizer."""

from dataclasses import replace
from typing import Any

from families import CASES, Case

_BY_NAME = {case.name: case for case in CASES}


def _changed(name: str, **sizes: Any) -> Case:
    case = _BY_NAME[name]
    return replace(case, sizes={**case.sizes, **sizes})


_CAPS: dict[str, Any] = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16}
# As published: transformers' loader has constants where the file has no key, or where it does not read the key.
_GEMMA2: dict[str, Any] = {
    "head_dim": 256, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
}  # fmt: skip
_GEMMA3 = {"head_dim": 256, "query_pre_attn_scalar": 256, "num_hidden_layers": 7, "sliding_window_pattern": 6}
_SMALL_HEADS = {"head_dim": 16, "query_pre_attn_scalar": 16}  # llama.cpp takes the size of a head, except for the 27B
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_theta": 5e5,
}  # fmt: skip

_ROPE = "its loader ignores scaled RoPE"
_MISSING = "its loader does not have the architecture"
_SHAPES = "its loader refuses the shapes"
# Each case, and why the GGUF loader of transformers 5.23 does not read it right; None: it does.
GGUF_CASES = [
    (_BY_NAME["llama"], None),
    (_BY_NAME["llama-padded"], None),
    (_BY_NAME["llama-mqa-bias-tied"], "its loader ignores biases"),
    (_BY_NAME["llama-head-dim"], None),
    (_BY_NAME["llama-linear"], _ROPE),
    (_BY_NAME["llama-yarn"], _ROPE),
    (_changed("llama", head_dim=64, rope_parameters=_LLAMA3, max_position_embeddings=256), _ROPE),
    (_BY_NAME["mistral"], None),
    (_BY_NAME["mixtral"], "its loader takes Mixtral for Llama"),
    (_BY_NAME["qwen2"], None),
    (_BY_NAME["qwen2.5-yarn"], _ROPE),
    (_changed("qwen3", head_dim=128), None),
    (_BY_NAME["qwen3_moe"], _SHAPES),
    (_BY_NAME["gemma"], _MISSING),
    (_changed("gemma2", **_GEMMA2), None),
    (_changed("gemma2", **_CAPS), "its loader has the published caps and query_pre_attn_scalar 256 for every model"),
    (_changed("gemma3_text", **_GEMMA3), None),
    (_changed("gemma3_text", **_GEMMA3 | _SMALL_HEADS), "its loader has query_pre_attn_scalar 256 for every model"),
    (_BY_NAME["phi"], _MISSING),
    (_BY_NAME["phi3"], None),
    (_BY_NAME["phi3-longrope"], _ROPE),
    (_BY_NAME["phi4-mini"], _ROPE),
    (_BY_NAME["olmo-clip"], _MISSING),
    (_BY_NAME["olmo2"], _MISSING),
    (_changed("smollm3", no_rope_layer_interval=4), _MISSING),
    (_BY_NAME["stablelm"], None),
    (_BY_NAME["gpt_neox-sequential"], _MISSING),
    (_BY_NAME["pythia"], _MISSING),
    (_BY_NAME["falcon-7b"], None),
    (_BY_NAME["falcon-40b"], _SHAPES),
    (_BY_NAME["gpt2"], _SHAPES),
    (_BY_NAME["santacoder"], _MISSING),
    (_BY_NAME["starcoder2"], None),
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
