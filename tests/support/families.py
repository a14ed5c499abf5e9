"""Tiny random transformers models of every family and variant: the reference that `lit_llm` is compared with."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from cases_dense import DENSE
from cases_experts import EXPERTS
from cases_hybrid import HYBRID
from cases_latent import LATENT, MOONLIGHT
from cases_older import OLDER
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_FALCON: dict[str, Any] = {k: v for k, v in _SIZES.items() if k not in ("intermediate_size", "num_key_value_heads")}
_FALCON_40B: dict[str, Any] = {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
_GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 96}


@dataclass(frozen=True)
class Case:
    """One tiny model. `sizes` are keyword arguments of the family's transformers configuration."""

    name: str
    family: str
    sizes: dict[str, Any]
    vocab_size: int = 99
    old_keys: dict[str, Any] = field(default_factory=dict)
    """Keys as older checkpoints have them, written into config.json in place of `drop`."""
    drop: tuple[str, ...] = ()
    mark: str = ""

    def __str__(self) -> str:
        return self.name


def _case(name: str, family: str, **sizes: Any) -> Case:
    vocab_size = sizes.pop("vocab_size", 99)
    return Case(name, family, {**_SIZES, **sizes}, vocab_size)


def _with_old_keys(case: Case, name: str, drop: tuple[str, ...], **old_keys: Any) -> Case:
    return Case(name, case.family, case.sizes, case.vocab_size, old_keys, drop)


_LLAMA = _case("llama", "llama")
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 16,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

CASES = [
    _LLAMA,
    _case("llama-padded", "llama", vocab_size=128, num_key_value_heads=4),
    _case("llama-mqa-bias-tied", "llama", num_key_value_heads=1, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    _case("llama-head-dim", "llama", head_dim=16),
    _case("codellama", "llama", rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    _case("llama-linear", "llama", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
    _case("llama-dynamic", "llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
    _case("llama3.1", "llama", rope_parameters={**_LLAMA3, "rope_theta": 5e5}),
    _case("llama-yarn", "llama", rope_parameters={**_YARN, "rope_theta": 1e4}),
    _with_old_keys(
        _case("", "llama", rope_parameters={"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4}),
        "longchat", ("rope_parameters", "dtype"), rope_condense_ratio=8, torch_dtype="float32",
    ),
    _with_old_keys(
        _case("", "llama", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 2e4}),
        "vicuna-16k", ("rope_parameters", "dtype"),
        rope_theta=2e4, rope_scaling={"type": "linear", "factor": 4.0}, torch_dtype="float16",
    ),
    _case("smollm3", "smollm3", num_hidden_layers=4, no_rope_layer_interval=2),
    _case("smollm3-window", "smollm3", num_hidden_layers=4, use_sliding_window=True, sliding_window=6),
    _case("mistral", "mistral", sliding_window=None),
    _case("mistral-window", "mistral", sliding_window=7, head_dim=16),
    _case("mixtral", "mixtral", num_local_experts=4, num_experts_per_tok=2),
    _case("mixtral-window", "mixtral", num_local_experts=5, num_experts_per_tok=3, sliding_window=7, vocab_size=128),
    _case("qwen2", "qwen2"),
    _case("qwen2-window", "qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1, tie_word_embeddings=True),
    _case(
        "qwen2-layer-types", "qwen2", use_sliding_window=True, sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    _with_old_keys(
        _case("", "qwen2", rope_parameters={**_YARN, "rope_theta": 1e6}),
        "qwen2.5-yarn", ("rope_parameters", "dtype", "layer_types"),
        rope_theta=1e6, rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    ),
    _case("qwen3", "qwen3", head_dim=16, vocab_size=128),
    _case("qwen3-bias-window", "qwen3", head_dim=16, attention_bias=True, use_sliding_window=True, sliding_window=4,
          max_window_layers=2),
    _case("qwen3_moe", "qwen3_moe", num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True,
          head_dim=16),
    _case("qwen3_moe-sparse-step", "qwen3_moe", num_hidden_layers=4, num_experts=4, num_experts_per_tok=2,
          moe_intermediate_size=24, decoder_sparse_step=2, mlp_only_layers=[1], use_sliding_window=True, sliding_window=6),
    _case("gemma", "gemma", head_dim=16),
    _with_old_keys(
        _case("", "gemma", head_dim=16, num_key_value_heads=1), "gemma-first-release", ("rope_parameters", "hidden_act"),
        hidden_act="gelu", hidden_activation=None, rope_theta=1e4,
    ),
    _case("gemma2", "gemma2", head_dim=16, sliding_window=6, query_pre_attn_scalar=24, attn_logit_softcapping=0.7,
          final_logit_softcapping=1.5),
    _case("gemma2-uncapped", "gemma2", head_dim=16, sliding_window=64, attn_logit_softcapping=None,
          final_logit_softcapping=None, vocab_size=128),
    _case("gemma3_text", "gemma3_text", head_dim=16, sliding_window=6, query_pre_attn_scalar=24, num_hidden_layers=4,
          sliding_window_pattern=3),
    _with_old_keys(
        _case("", "gemma3_text", head_dim=16, sliding_window=6, num_hidden_layers=4, sliding_window_pattern=2, rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}),
        "gemma3-first-release", ("rope_parameters", "dtype", "layer_types"), rope_theta=1e6, rope_local_base_freq=2e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0}, sliding_window_pattern=2,
    ),
    _case("phi", "phi"),
    _case("phi-qk-norm", "phi", qk_layernorm=True, vocab_size=128),
    _case("phi3", "phi3"),
    _case("phi3-window", "phi3", sliding_window=6),
    _case("phi3-longrope", "phi3", original_max_position_embeddings=16,
          rope_parameters={**_LONGROPE, "rope_theta": 1e4}),
    _with_old_keys(
        _case("", "phi3", original_max_position_embeddings=16,
              rope_parameters={**_LONGROPE, "rope_theta": 1e4}),
        "phi3-128k-first-release", ("rope_parameters",), rope_theta=1e4, rope_scaling={
            "type": "su", **{name: _LONGROPE[name] for name in ("short_factor", "long_factor")}},
    ),
    _case("phi4-mini", "phi3", original_max_position_embeddings=16, tie_word_embeddings=True, rope_parameters={
        **_LONGROPE, "rope_theta": 1e4, "partial_rotary_factor": 0.75, "short_factor": [1.0] * 3, "long_factor": [1, 2, 3]}),
    _case("olmo", "olmo"),
    _case("olmo-clip", "olmo", clip_qkv=0.5, vocab_size=128),
    _case("olmo2", "olmo2"),
    _case("stablelm", "stablelm"),
    _case("stablelm-2-1.6b", "stablelm", use_qkv_bias=True, vocab_size=128, partial_rotary_factor=0.5),
    _case("stablelm-2-12b", "stablelm", qk_layernorm=True, use_parallel_residual=True),
    _case("gpt_neox", "gpt_neox"),
    _case("gpt_neox-sequential", "gpt_neox", use_parallel_residual=False, vocab_size=128, rope_parameters={
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}),
    _with_old_keys(_case("", "gpt_neox"), "pythia", ("rope_parameters", "dtype", "attention_bias"), rotary_pct=0.25,
                   rotary_emb_base=10000, torch_dtype="float16"),
    Case("falcon-7b", "falcon", _FALCON),
    Case("falcon-40b", "falcon", _FALCON_40B),
    Case("falcon-11b", "falcon", {**_FALCON_40B, "num_ln_in_parallel_attn": 1}),
    Case("falcon-sequential", "falcon", {**_FALCON, "parallel_attn": False, "multi_query": False, "bias": True}, 128),
    Case("falcon-7b-first-release", "falcon", _FALCON, old_keys={
        "model_type": "RefinedWebModel", "n_head": 4, "n_layer": 3, "multi_query": True, "parallel_attn": True,
        "apply_residual_connection_post_layernorm": False},
        drop=("num_attention_heads", "num_hidden_layers", "num_kv_heads", "new_decoder_architecture", "ffn_hidden_size",
              "rope_parameters", "num_ln_in_parallel_attn", "parallel_attn")),
    Case("falcon-40b-first-release", "falcon", _FALCON_40B, old_keys={
        "model_type": "RefinedWeb", "n_head": 4, "n_layer": 3, "n_head_kv": 2},
        drop=("num_attention_heads", "num_hidden_layers", "num_kv_heads", "new_decoder_architecture", "ffn_hidden_size",
              "rope_parameters", "num_ln_in_parallel_attn", "parallel_attn", "multi_query")),
    Case("gpt2", "gpt2", _GPT2),
    Case("gpt2-untied", "gpt2", {**_GPT2, "tie_word_embeddings": False, "n_inner": 40, "activation_function": "relu"}, 128),
    Case("santacoder", "gpt_bigcode", _GPT2),
    Case("starcoder-multi-head", "gpt_bigcode", {**_GPT2, "multi_query": False}, 128),
    _case("starcoder2", "starcoder2", vocab_size=128),
    _case("starcoder2-15b", "starcoder2", sliding_window=6, use_bias=False, tie_word_embeddings=False),
    *(_case(name, family, **sizes) for name, family, sizes in DENSE),
    _with_old_keys(_case("", "internlm3", head_dim=8, attention_bias=True, mlp_bias=True), "internlm3-first-release",
                   ("attention_bias", "mlp_bias"), qkv_bias=True, bias=True),
    *(Case(*case) for case in OLDER),
    *(_case(name, family, **sizes) for name, family, sizes in [*EXPERTS, *LATENT, *HYBRID]),
    _with_old_keys(_case("", "deepseek_v3", **MOONLIGHT), "kimi_k2", ("rope_parameters", "dtype"), model_type="kimi_k2",
                   rope_theta=1e4, torch_dtype="float32"),
]  # fmt: skip

BY_NAME = {case.name: case for case in CASES}
EVERY_PART = [
    BY_NAME[name]
    for name in """llama llama-mqa-bias-tied mixtral qwen2 gemma3_text phi-qk-norm phi3 stablelm-2-12b gpt_neox falcon-40b gpt2
    granite command-r-plus apertus nanochat-bias bloom opt-350m dots1 gpt_oss qwen2_moe phimoe deepseek_v2
    deepseek_v3 lfm2 lfm2-bias-untied qwen3_next qwen3_next-bias""".split()
]
"""Together they have every kind of part that some family has."""


def all_families() -> list[Any]:
    """One case per family and those of `EVERY_PART`, as parameters of a test; the others run with `-m slow`."""
    cases = {case.name: case for case in [*{case.family: case for case in reversed(CASES)}.values(), *EVERY_PART]}.values()
    return [pytest.param(case, id=case.name, marks=() if case in EVERY_PART else pytest.mark.slow) for case in cases]


def make_reference(case: Case, folder: Path, max_shard_size: str = "5GB") -> PreTrainedModel:
    """Random model of this case in eval mode, saved in `folder`; no parameter is left at a value that hides it, as 0 or 1."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        case.family, vocab_size=case.vocab_size, pad_token_id=0, bos_token_id=1, eos_token_id=2, **case.sizes
    )
    # Falcon's eager attention adds the biases of ALiBi twice, as scores and as a mask.
    config._attn_implementation = "sdpa" if case.sizes.get("alibi") else "eager"
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_zero_centred = not parameter.any()
            parameter.normal_(std=0.3 if parameter.dim() < 2 else 0.15)
            if re.search(r"(norm|ln_\w+)(\.norms\.\d+)?\.weight$", name) and not is_zero_centred:
                parameter.add_(1)
            if name.endswith("A_log"):
                parameter.sub_(3)  # the state then lasts longer than a chunk
        for name, buffer in model.named_buffers():
            if name.endswith(("e_score_correction_bias", "expert_bias")):
                buffer.normal_(std=0.3)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    path = folder / "config.json"
    values = {k: v for k, v in json.loads(path.read_text()).items() if k not in case.drop}
    path.write_text(json.dumps(values | case.old_keys))
    return model


def random_ids(case: Case, *shape: int) -> Tensor:
    """Token ids but for 0, the padding, whose embedding has no gradient in transformers."""
    return torch.randint(1, case.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def relative_difference(ours: Tensor, reference: Tensor) -> float:
    """Largest absolute difference, as a fraction of the reference's largest absolute value."""
    assert ours.shape == reference.shape
    return ((ours - reference).abs().max() / reference.abs().max()).item()
