"""The config of a model as metadata of a GGUF file, in both directions.

Reading makes the `config.json` that upstream would ship, so that the rules of the families in `lit_llm.model.families` apply.
Values that are not in the file are constants of llama.cpp (src/llama-model.cpp, load_hparams), and of the rows here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_llm.checkpoint.gguf_names import ROPE_TENSORS
from lit_llm.checkpoint.gguf_tensors import read_tensor
from lit_llm.errors import CheckpointError
from lit_llm.model.config import Config
from lit_llm.model.config_json import Fields
from lit_llm.model.families import FAMILIES
from lit_llm.model.families.family import LLAMA_KEYS
from lit_llm.model.rope import Rope
from lit_llm.schema import shown
from lit_llm.text.gguf_file import GGUF

# Architectures whose linears have no bias in llama.cpp.
_UNBIASED = frozenset(("qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "olmo", "olmo2", "smollm3"))
# Architectures without a sliding window in llama.cpp (phi3: switched off there).
_UNWINDOWED = frozenset(("llama", "qwen2", "qwen3", "qwen3moe", "phi3", "starcoder2"))

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True)
class Architecture:
    """How an architecture of GGUF says what upstream's `config.json` does."""

    model_type: str
    fixed: Fields = field(default_factory=dict)
    """Keys of `config.json` that every model of the architecture has."""
    more: Callable[[GGUF, Fields], Fields] = lambda file, common: {}
    """Returns further keys of `config.json`, given those with common names."""


def _experts(file: GGUF, common: Fields) -> Fields:
    return {
        "num_experts": file.get("{arch}.expert_count", int),
        "num_experts_per_tok": file.get("{arch}.expert_used_count", int),
        "moe_intermediate_size": file.get("{arch}.expert_feed_forward_length", int),
    }


def _llama(file: GGUF, common: Fields) -> Fields:
    if not file.get("{arch}.expert_count", int, 0):
        return {}
    return {
        "model_type": "mixtral",
        "num_local_experts": file.get("{arch}.expert_count", int),
        "num_experts_per_tok": file.get("{arch}.expert_used_count", int),
    }


def _gemma2(file: GGUF, common: Fields) -> Fields:
    is_27b = common["num_hidden_layers"] == 46
    return {
        "sliding_window": file.get("{arch}.attention.sliding_window", int, 4096),
        "attn_logit_softcapping": _number(file, "attn_logit_softcapping", 50.0),
        "final_logit_softcapping": _number(file, "final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": common["hidden_size"] // common["num_attention_heads"] if is_27b else common["head_dim"],
    }


def _gemma3(file: GGUF, common: Fields) -> Fields:
    is_27b = common["num_hidden_layers"] == 62
    return {
        "sliding_window": file.get("{arch}.attention.sliding_window", int),
        "sliding_window_pattern": file.get("{arch}.attention.sliding_window_pattern", int, 6),
        "rope_local_base_freq": _number(file, "rope.freq_base_swa", 10000.0),
        "final_logit_softcapping": _optional_number(file, "final_logit_softcapping"),
        "query_pre_attn_scalar": common["hidden_size"] // common["num_attention_heads"] if is_27b else common["head_dim"],
    }


def _phi3(file: GGUF, common: Fields) -> Fields:
    original = file.optional("{arch}.rope.scaling.original_context_length", int)
    return {
        "sliding_window": file.optional("{arch}.attention.sliding_window", int) or None,
        "original_max_position_embeddings": original or common["max_position_embeddings"],
    }


def _stablelm(file: GGUF, common: Fields) -> Fields:
    return {
        "use_qkv_bias": file.has("blk.0.attn_q.bias"),
        "use_parallel_residual": file.get("{arch}.use_parallel_residual", bool, not file.has("blk.0.ffn_norm.weight")),
    }


def _falcon(file: GGUF, common: Fields) -> Fields:
    return {
        "new_decoder_architecture": True,
        "num_kv_heads": common["num_key_value_heads"],
        "num_ln_in_parallel_attn": 2 if file.has("blk.0.attn_norm_2.weight") else 1,
    }


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", more=_llama),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "qwen3moe": Architecture("qwen3_moe", {"norm_topk_prob": True}, _experts),
    "gemma": Architecture("gemma"),
    "gemma2": Architecture("gemma2", more=_gemma2),
    "gemma3": Architecture("gemma3_text", more=_gemma3),
    "phi2": Architecture("phi"),
    "phi3": Architecture("phi3", more=_phi3),
    "olmo": Architecture("olmo", more=lambda file, common: {"clip_qkv": _optional_number(file, "attention.clamp_kqv")}),
    "olmo2": Architecture("olmo2"),
    "smollm3": Architecture("smollm3"),
    "stablelm": Architecture("stablelm", more=_stablelm),
    "falcon": Architecture("falcon", more=_falcon),
    "gpt2": Architecture("gpt2"),
    "gptneox": Architecture(
        "gpt_neox",
        more=lambda file, common: {"use_parallel_residual": file.get("{arch}.use_parallel_residual", bool, True)},
    ),
    "starcoder": Architecture(
        "gpt_bigcode", more=lambda file, common: {"multi_query": common["num_key_value_heads"] == 1}
    ),
    "starcoder2": Architecture("starcoder2", {"use_bias": True}),
}  # fmt: skip
# Families that llama.cpp computes as the architecture llama.
LIKE_LLAMA = ("mistral", "mixtral")


def architecture(file: GGUF) -> str:
    """Return the name of the architecture. Raise CheckpointError if it is not one of `ARCHITECTURES`."""
    arch = file.get("general.architecture", str)
    if (kind := file.get("general.type", str, "model")) != "model":
        raise CheckpointError(f"{file.path} is a GGUF {kind[:40]}, not a model. Use the file of its base")
    if arch not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise CheckpointError(
            f"{file.path}: the architecture {shown(arch)} is not supported; supported: {known}. "
            "Use the model's Hugging Face folder if its model_type is supported"
        )
    return arch


def architecture_of(config: Config) -> str:
    """Return the architecture of GGUF for a model. Raise CheckpointError if there is none."""
    if config.model_type in LIKE_LLAMA:
        return "llama"
    for arch, row in ARCHITECTURES.items():
        if row.model_type == config.model_type:
            return arch
    raise CheckpointError(f"models of type {config.model_type} cannot be written as GGUF. Use the format of Hugging Face")


def config_of(file: GGUF, rope: Mapping[str, Tensor] | None = None) -> Config:
    """Return the config that a file describes.

    Args:
        rope: The tensors of RoPE; None: those in the file.

    Raises:
        CheckpointError: if the architecture is not supported, or the metadata contradict each other.
    """
    try:
        config = Config.from_hf(hf_config(file, rope))
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(file.path) in str(error) else f"{file.path}: {error}") from error
    _check_sizes(file, config)
    return config


def _check_sizes(file: GGUF, config: Config) -> None:
    """Raise CheckpointError if the family takes a size from elsewhere than the metadata and gets another one."""
    sizes = {
        "attention.head_count_kv": config.n_query_groups,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": config.rotary_size,
    }
    for key, size in sizes.items():
        found = file.optional(f"{{arch}}.{key}", int)
        if found not in (None, size) and not (key == "rope.dimension_count" and size == 0):
            raise CheckpointError(
                f"{file.path}: metadata {architecture(file)}.{key} is {found}, but a {config.model_type} model of these sizes "
                f"has {size}, which is not supported. Use the original checkpoint"
            )


def hf_config(file: GGUF, rope: Mapping[str, Tensor] | None = None) -> Fields:
    """Return the contents of the `config.json` that describes the model of a file; errors are those of `config_of`."""
    rope = (
        {name: read_tensor(name, file.tensors[name]) for name in ROPE_TENSORS & file.tensors.keys()} if rope is None else rope
    )
    row, common = ARCHITECTURES[architecture(file)], _common(file, rope)
    more = row.more(file, common)
    model_type = more.pop("model_type", row.model_type)
    family = FAMILIES[model_type]
    known = {*LLAMA_KEYS, *family.keys, *(("rope_theta", "partial_rotary_factor", "rope_scaling") if family.rope else ())}
    if common["partial_rotary_factor"] == 1 and "partial_rotary_factor" not in family.keys:
        known.discard("partial_rotary_factor")
    keys = {family.spelled.get(key, key): value for key, value in common.items() if key in known}
    keys = {key: value for key, value in keys.items() if key is not None and value is not None}
    ids = {f"{name}_token_id": file.optional(f"tokenizer.ggml.{name}_token_id", int) for name in ("bos", "eos")}
    return {"model_type": model_type, **keys, **row.fixed, **more, **{name: i for name, i in ids.items() if i is not None}}


def _common(file: GGUF, rope: Mapping[str, Tensor]) -> Fields:
    """Return the values that most families have, by the common names of their keys."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path}: tensor token_embd.weight is missing or not a matrix. Download it again")
    n_head, n_embd = file.get("{arch}.attention.head_count", int), file.get("{arch}.embedding_length", int)
    if n_head < 1 or n_embd < 1:
        raise CheckpointError(f"{file.path}: metadata attention.head_count {n_head} or embedding_length {n_embd} is below 1")
    head_dim = file.get("{arch}.attention.key_length", int, n_embd // n_head)
    if head_dim < 1:
        raise CheckpointError(
            f"{file.path}: metadata attention.key_length, the size of a head, is {head_dim}. Download it again"
        )
    rotary, arch = file.optional("{arch}.rope.dimension_count", int), architecture(file)
    eps = _optional_number(file, "attention.layer_norm_rms_epsilon") or _optional_number(file, "attention.layer_norm_epsilon")
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": n_embd,
        "num_hidden_layers": file.get("{arch}.block_count", int),
        "num_attention_heads": n_head,
        "num_key_value_heads": file.get("{arch}.attention.head_count_kv", int, n_head),
        "head_dim": head_dim,
        "intermediate_size": file.get("{arch}.feed_forward_length", int),
        "max_position_embeddings": file.get("{arch}.context_length", int),
        "rms_norm_eps": eps,
        "rope_theta": _number(file, "rope.freq_base", 10000.0),
        "partial_rotary_factor": (rotary or head_dim) / head_dim,
        "rope_scaling": _rope_scaling(file, rope, rotary or head_dim),
        "tie_word_embeddings": not file.has("output.weight"),
        "attention_bias": arch not in _UNBIASED and any(file.has(f"blk.0.{name}.bias") for name in ("attn_q", "attn_qkv")),
        "mlp_bias": arch not in _UNBIASED and file.has("blk.0.ffn_up.bias"),
    }


def _number(file: GGUF, key: str, default: float) -> float:
    return shortest(file.get(f"{{arch}}.{key}", float, default))


def _optional_number(file: GGUF, key: str) -> float | None:
    value = file.optional(f"{{arch}}.{key}", float)
    return None if value is None else shortest(value)


def shortest(value: float) -> float:
    """Return the number with the fewest digits that is `value` in float32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(file: GGUF, rope: Mapping[str, Tensor], rotary_size: int) -> Fields | None:
    kind = file.get("{arch}.rope.scaling.type", str, "none")
    factor = _number(file, "rope.scaling.factor", _number(file, "rope.scale_linear", 1.0))
    original = file.optional("{arch}.rope.scaling.original_context_length", int)
    if "rope_freqs.weight" in rope:
        return _from_divisors(file, rope["rope_freqs.weight"], rotary_size)
    if {"rope_factors_long.weight", "rope_factors_short.weight"} <= rope.keys():
        lists = {f"{name}_factor": rope[f"rope_factors_{name}.weight"].tolist() for name in ("short", "long")}
        growth = file.get("{arch}.context_length", int) / (original or 1)
        found = {"rope_type": "longrope", **lists, "factor": growth, "original_max_position_embeddings": original}
        attention = _optional_number(file, "rope.scaling.attn_factor")
        usual = attention is None or not original or math.isclose(attention, Rope(rotary_size, 1e4, found).factor, rel_tol=1e-6)
        return found | ({} if usual else {"attention_factor": attention})
    if kind == "none" or (kind == "linear" and factor == 1):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and original:
        betas = {f"beta_{x}": _optional_number(file, f"rope.scaling.yarn_beta_{x}") for x in ("fast", "slow")}
        found = {name: value for name, value in betas.items() if value is not None}
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **found}
    raise CheckpointError(
        f"{file.path}: metadata rope.scaling.type {shown(kind)} with original_context_length {shown(original)} is not "
        "supported. Use the original checkpoint"
    )


def _from_divisors(file: GGUF, found: Tensor, rotary_size: int) -> Fields:
    """Return the RoPE of Llama 3.1 if its rule makes these divisors of the frequencies, else longrope, which takes any."""
    if len(found) != rotary_size // 2:
        raise CheckpointError(f"{file.path}: rope_freqs.weight has {len(found)} values, expected {rotary_size // 2}")
    llama3 = {"rope_type": "llama3", "factor": shortest(found.max().item()), **_LLAMA3}
    made = rope_divisors(rotary_size, _number(file, "rope.freq_base", 10000.0), llama3)
    if torch.allclose(made, found, rtol=1e-4):
        return llama3
    return {
        "rope_type": "longrope", "short_factor": found.tolist(), "long_factor": found.tolist(), "factor": 1.0,
        "attention_factor": 1.0, "original_max_position_embeddings": file.get("{arch}.context_length", int),
    }  # fmt: skip


def rope_divisors(rotary_size: int, theta: float, scaling: Fields) -> Tensor:
    """Return by how much a scaling divides each frequency, (rotary_size / 2,)."""
    return Rope(rotary_size, theta, None).inv_freq / Rope(rotary_size, theta, scaling).inv_freq


def metadata(config: Config, arch: str) -> tuple[Fields, dict[str, Tensor]]:
    """Return the metadata and the tensors of RoPE that describe a model; the inverse of `hf_config`."""
    has_rope, scaling = config.rotary_size > 0, config.rope_scaling or {}
    is_linear = scaling.get("rope_type") == "linear"
    eps = "layer_norm_rms_epsilon" if config.norm.startswith("rms") else "layer_norm_epsilon"
    values: Fields = {
        "vocab_size": config.vocab_size,
        "context_length": round(config.block_size / scaling["factor"]) if is_linear and arch != "gemma3" else config.block_size,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": config.n_query_groups,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        f"attention.{eps}": config.norm_eps,
        "rope.dimension_count": config.rotary_size if has_rope else None,
        "rope.freq_base": config.rope_theta if has_rope else None,
        "rope.freq_base_swa": config.local_rope_theta,
        "attention.sliding_window": config.sliding_window,
        "attention.clamp_kqv": config.clip_qkv,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "use_parallel_residual": config.parallel_residual if arch in ("gptneox", "stablelm") else None,
        "expert_count": config.n_expert or None,
        "expert_used_count": config.n_expert_per_token or None,
        "expert_feed_forward_length": config.expert_size or None,
    }
    scale, tensors = _scaling_metadata(config, scaling)
    return {f"{arch}.{key}": value for key, value in (values | scale).items() if value is not None}, tensors


def _scaling_metadata(config: Config, scaling: Fields) -> tuple[Fields, dict[str, Tensor]]:
    kind, original = scaling.get("rope_type"), scaling.get("original_max_position_embeddings")
    if kind is None:
        return {}, {}
    if kind == "llama3":
        return {}, {"rope_freqs.weight": rope_divisors(config.rotary_size, config.rope_theta, scaling)}
    if kind == "linear":
        return {"rope.scaling.type": kind, "rope.scaling.factor": scaling["factor"]}, {}
    if kind == "yarn":
        betas = {f"rope.scaling.yarn_{name}": scaling.get(name) for name in ("beta_fast", "beta_slow")}
        place = {"rope.scaling.factor": scaling["factor"], "rope.scaling.original_context_length": original}
        return {"rope.scaling.type": kind, **place, **betas}, {}
    if kind == "longrope" and original is not None:
        factor = Rope(config.rotary_size, config.rope_theta, scaling).factor
        lists = {f"rope_factors_{name}.weight": torch.tensor(scaling[f"{name}_factor"]) for name in ("short", "long")}
        return {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": factor}, lists
    raise CheckpointError(f"RoPE of type {kind} does not exist in GGUF. Use the format of Hugging Face")


def representable(config: Config, arch: str) -> Config:
    """Return the config that llama.cpp computes: with the context cut to a window that its architecture does not have."""
    if config.model_type == "mistral":
        config = replace(config, model_type="llama")
    if arch in _UNWINDOWED and config.sliding_window is not None:
        size = min(config.block_size, config.sliding_window)
        return replace(config, block_size=size, sliding_window=None, sliding_layers=None)
    return config


def same_maths(a: Any, b: Any) -> bool:
    """Return whether two values of a config are equal in float32."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_maths, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_maths(a[name], b[name]) for name in a)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)
    return a == b
