"""What `config.json` of each family says about the maths: one small function per `model_type`.

The first line of a function's docstring names published checkpoints; tutorials/models.md lists them.
"""

from collections.abc import Callable
from typing import Any

from lit_llm.model.config_json import MAX_LAYERS, Keys, activation_of, positive, rope_fields, shape_fields, window_fields


def _llama(k: Keys) -> dict[str, Any]:
    """Llama 1 to 3.3, Code Llama, TinyLlama, OpenLLaMA, Vicuna, LongChat, Nous-Hermes, Platypus, SmolLM 1 and 2."""
    bias = k.get("attention_bias", False)
    shape = shape_fields(
        k, vocab_size=32000, hidden_size=4096, intermediate_size=11008, layers=32, heads=32, context=2048,
    )  # fmt: skip
    if (ratio := k.get("rope_condense_ratio", 1)) != 1:  # LongChat's name for linear scaling
        if shape["rope_scaling"] not in (None, {"rope_type": "linear", "factor": ratio}):
            raise ValueError("rope_condense_ratio and rope_scaling contradict each other")
        shape["rope_scaling"] = {"rope_type": "linear", "factor": positive("rope_condense_ratio", ratio)}
    return dict(
        **shape,
        norm_eps=k.get("rms_norm_eps", 1e-6),
        activation=activation_of(k.get("hidden_act", "silu")),
        attn_bias=bias,
        attn_out_bias=bias,
        mlp_bias=k.get("mlp_bias", False),
    )


def _smollm3(k: Keys) -> dict[str, Any]:
    """SmolLM3 3B: some layers have no RoPE (https://arxiv.org/abs/2501.18795)."""
    shape = shape_fields(
        k, vocab_size=128256, hidden_size=2048, intermediate_size=11008, layers=36, heads=16, kv_heads=4, context=32768,
        theta=2000000.0, tie=True,
    )  # fmt: skip
    n_layer, bias = shape["n_layer"], k.get("attention_bias", False)
    interval = k.size("no_rope_layer_interval", 4)
    has_rope = k.get("no_rope_layers", [int((i + 1) % interval != 0) for i in range(n_layer)])  # 1 means with RoPE
    if not isinstance(has_rope, list) or len(has_rope) != n_layer:
        raise ValueError(f"no_rope_layers must have one entry for each of {n_layer} layers, found {has_rope!r}")
    window = k.nullable("sliding_window", None)
    window = window if k.get("use_sliding_window", False) else None
    slides = [window is not None and not has for has in has_rope]
    return dict(
        **shape,
        **window_fields(k, n_layer, window, slides),
        norm_eps=k.get("rms_norm_eps", 1e-6),
        activation=activation_of(k.get("hidden_act", "silu")),
        attn_bias=bias,
        attn_out_bias=bias,
        mlp_bias=k.get("mlp_bias", False),
        no_rope_layers=[i for i, has in enumerate(has_rope) if not has] or None,
    )


def _mistral(k: Keys) -> dict[str, Any]:
    """Mistral 7B v0.1 to v0.3, Mistral Nemo, Zephyr 7B."""
    return dict(
        **shape_fields(
            k, vocab_size=32000, hidden_size=4096, intermediate_size=14336, layers=32, heads=32, kv_heads=8, context=131072,
        ),
        norm_eps=k.get("rms_norm_eps", 1e-6),
        activation=activation_of(k.get("hidden_act", "silu")),
        sliding_window=k.nullable("sliding_window", 4096),
    )  # fmt: skip


def _mixtral(k: Keys) -> dict[str, Any]:
    """Mixtral 8x7B and 8x22B."""
    shape = shape_fields(
        k, vocab_size=32000, hidden_size=4096, intermediate_size=14336, layers=32, heads=32, kv_heads=8, context=131072,
        theta=1000000.0,
    )  # fmt: skip
    k.only("router_jitter_noise", 0.0)
    return dict(
        **shape,
        norm_eps=k.get("rms_norm_eps", 1e-5),
        activation=activation_of(k.get("hidden_act", "silu")),
        sliding_window=k.nullable("sliding_window", None),
        n_expert=k.size("num_local_experts", 8),
        n_expert_per_token=k.size("num_experts_per_tok", 2),
        expert_size=shape["intermediate_size"],
    )


def _qwen2(k: Keys) -> dict[str, Any]:
    """Qwen 1.5, 2 and 2.5 but for their mixtures of experts, Qwen2.5-Coder, Qwen2.5-Math."""
    shape = shape_fields(
        k, vocab_size=151936, hidden_size=4096, intermediate_size=22016, layers=32, heads=32, kv_heads=32, context=32768,
    )  # fmt: skip
    k.only("use_mrope", False)
    return dict(
        **shape,
        **_qwen_window(k, shape["n_layer"]),
        norm_eps=k.get("rms_norm_eps", 1e-6),
        activation=activation_of(k.get("hidden_act", "silu")),
        attn_bias=True,
    )


def _qwen_window(k: Keys, n_layer: int) -> dict[str, Any]:
    """The first `max_window_layers` attend to everything, the later ones to the window."""
    window, full = k.nullable("sliding_window", 4096), k.get("max_window_layers", 28)
    if not k.get("use_sliding_window", False):
        window = None
    return window_fields(k, n_layer, window, [window is not None and i >= full for i in range(n_layer)])


def _qwen3(k: Keys) -> dict[str, Any]:
    """Qwen3 0.6B to 32B."""
    shape = shape_fields(
        k, vocab_size=151936, hidden_size=4096, intermediate_size=22016, layers=32, heads=32, kv_heads=32, head_dim=128,
        context=32768,
    )  # fmt: skip
    bias = k.get("attention_bias", False)
    return dict(
        **shape,
        **_qwen_window(k, shape["n_layer"]),
        norm_eps=k.get("rms_norm_eps", 1e-6),
        activation=activation_of(k.get("hidden_act", "silu")),
        attn_bias=bias,
        attn_out_bias=bias,
        qk_norm="head",
    )


def _qwen3_moe(k: Keys) -> dict[str, Any]:
    """Qwen3 30B-A3B and 235B-A22B, Qwen3-Coder 30B-A3B."""
    shape = shape_fields(
        k, vocab_size=151936, hidden_size=2048, intermediate_size=6144, layers=24, heads=32, kv_heads=4, context=32768,
    )  # fmt: skip
    bias, window = k.get("attention_bias", False), k.nullable("sliding_window", 4096)
    n_expert = k.get("num_local_experts", None) or k.get("num_experts", 128)
    step, only_mlp = k.size("decoder_sparse_step", 1), k.get("mlp_only_layers", [])
    dense = [i for i in range(shape["n_layer"]) if i in only_mlp or (i + 1) % step]
    k.unused("max_window_layers")
    return dict(
        **shape,
        norm_eps=k.get("rms_norm_eps", 1e-6),
        activation=activation_of(k.get("hidden_act", "silu")),
        attn_bias=bias,
        attn_out_bias=bias,
        qk_norm="head",
        sliding_window=window if k.get("use_sliding_window", False) else None,
        n_expert=n_expert,
        n_expert_per_token=k.size("num_experts_per_tok", 8),
        expert_size=k.size("moe_intermediate_size", 768),
        normalize_expert_weights=k.get("norm_topk_prob", False),
        dense_layers=dense or None,
    )


def _gemma(k: Keys) -> dict[str, Any]:
    """Gemma 2B and 7B, CodeGemma."""
    activation = k.get("hidden_act", "gelu_pytorch_tanh")
    k.unused("hidden_activation")
    shape = shape_fields(
        k, vocab_size=256000, hidden_size=3072, intermediate_size=24576, layers=28, heads=16, kv_heads=16, head_dim=256,
        context=8192, tie=True,
    )  # fmt: skip
    # The first release wrote `gelu` and meant its approximation.
    return dict(
        **shape, **_gemma_parts(k), activation=activation_of("gelu_pytorch_tanh" if activation == "gelu" else activation)
    )


def _gemma_parts(k: Keys) -> dict[str, Any]:
    """What all generations of Gemma share."""
    k.only("use_bidirectional_attention", False)
    bias = k.get("attention_bias", False)
    eps = k.get("rms_norm_eps", 1e-6)
    return {"norm": "rms_plus_one", "norm_eps": eps, "attn_bias": bias, "attn_out_bias": bias, "scale_embeddings": True}


def _gemma2(k: Keys) -> dict[str, Any]:
    """Gemma 2 2B, 9B and 27B."""
    shape = shape_fields(
        k, vocab_size=256000, hidden_size=2304, intermediate_size=9216, layers=26, heads=8, kv_heads=4, head_dim=256,
        context=8192, tie=True,
    )  # fmt: skip
    n_layer = shape["n_layer"]
    k.unused("hidden_act")
    return dict(
        **shape,
        **_gemma_parts(k),
        **window_fields(k, n_layer, k.nullable("sliding_window", 4096), [i % 2 == 0 for i in range(n_layer)]),
        post_norm=True,
        activation=activation_of(k.get("hidden_activation", "gelu_pytorch_tanh")),
        attention_scale=positive("query_pre_attn_scalar", k.get("query_pre_attn_scalar", 256)) ** -0.5,
        attention_softcap=k.nullable("attn_logit_softcapping", 50.0),
        logit_softcap=k.nullable("final_logit_softcapping", 30.0),
    )


def _gemma3_text(k: Keys) -> dict[str, Any]:
    """Gemma 3 270M and 1B.

    Layers with a sliding window have their own RoPE, so `rope_parameters` is keyed by the kind of layer.
    """
    kinds = k.get("rope_parameters", {})
    if unknown := sorted(kinds.keys() - {"full_attention", "sliding_attention"}):
        raise ValueError(f"rope_parameters has fields that are not understood: {', '.join(unknown)}")
    local = dict(kinds.get("sliding_attention") or {})
    local_theta = local.pop("rope_theta", None) or k.get("rope_local_base_freq", 10000.0)
    if local.pop("rope_type", "default") != "default" or local:
        raise ValueError(f"scaled RoPE in layers with a sliding window is not supported: {kinds['sliding_attention']}")
    shape = shape_fields(
        k, vocab_size=262208, hidden_size=2304, intermediate_size=9216, layers=26, heads=8, kv_heads=4, head_dim=256,
        context=131072, tie=True, theta=1000000.0,
        parameters={**(kinds.get("full_attention") or {}), **k.get("rope_scaling", {})},
    )  # fmt: skip
    k.unused("hidden_act", "_sliding_window_pattern")
    n_layer, pattern = shape["n_layer"], k.size("sliding_window_pattern", 6)
    k.only("attn_logit_softcapping", None)
    return dict(
        **shape,
        **_gemma_parts(k),
        **window_fields(k, n_layer, k.nullable("sliding_window", 4096), [(i + 1) % pattern != 0 for i in range(n_layer)]),
        post_norm=True,
        qk_norm="head",
        activation=activation_of(k.get("hidden_activation", "gelu_pytorch_tanh")),
        attention_scale=positive("query_pre_attn_scalar", k.get("query_pre_attn_scalar", 256)) ** -0.5,
        logit_softcap=k.nullable("final_logit_softcapping", None),
        local_rope_theta=float(local_theta),
    )


def _phi(k: Keys) -> dict[str, Any]:
    """Phi-1, Phi-1.5 and Phi-2."""
    return dict(
        **shape_fields(
            k, vocab_size=51200, hidden_size=2048, intermediate_size=8192, layers=24, heads=32, context=2048, fraction=0.5,
        ),
        **_LAYER_NORM,
        norm_eps=k.get("layer_norm_eps", 1e-5),
        mlp="plain",
        activation=activation_of(k.get("hidden_act", "gelu_new")),
        attn_bias=True,
        attn_out_bias=True,
        mlp_bias=True,
        lm_head_bias=True,
        parallel_residual=True,
        shared_attention_norm=True,
        qk_norm="head" if k.get("qk_layernorm", False) else None,
    )  # fmt: skip


_LAYER_NORM = {"norm": "layer", "norm_bias": True}


def _phi3(k: Keys) -> dict[str, Any]:
    """Phi-3 and Phi-3.5 mini, Phi-3 medium, Phi-4, Phi-4-mini."""
    parameters = {**k.get("rope_parameters", {}), **k.get("rope_scaling", {})}
    for key in ("type", "rope_type"):
        if parameters.get(key) in ("su", "yarn"):  # what the first releases called it
            parameters[key] = "longrope"
    k.only("attention_bias", False)
    return dict(
        **shape_fields(
            k, vocab_size=32064, hidden_size=3072, intermediate_size=8192, layers=32, heads=32, context=4096,
            parameters=parameters, original=4096,
        ),
        norm_eps=k.get("rms_norm_eps", 1e-5),
        activation=activation_of(k.get("hidden_act", "silu")),
        sliding_window=k.nullable("sliding_window", None),
    )  # fmt: skip


def _olmo(k: Keys) -> dict[str, Any]:
    """OLMo 1B and 7B."""
    bias = k.get("attention_bias", False)
    return dict(
        **shape_fields(k, vocab_size=50304, hidden_size=4096, intermediate_size=11008, layers=32, heads=32, context=2048),
        norm="layer_fixed",
        activation=activation_of(k.get("hidden_act", "silu")),
        attn_bias=bias,
        attn_out_bias=bias,
        clip_qkv=k.get("clip_qkv", None),
    )


def _olmo2(k: Keys) -> dict[str, Any]:
    """OLMo 2 1B, 7B, 13B and 32B."""
    bias = k.get("attention_bias", False)
    return dict(
        **shape_fields(k, vocab_size=50304, hidden_size=4096, intermediate_size=11008, layers=32, heads=32, context=2048),
        norm_eps=k.get("rms_norm_eps", 1e-5),
        pre_norm=False,
        post_norm=True,
        qk_norm="row",
        activation=activation_of(k.get("hidden_act", "silu")),
        attn_bias=bias,
        attn_out_bias=bias,
    )


def _stablelm(k: Keys) -> dict[str, Any]:
    """StableLM 3B-4E1T, StableLM Zephyr 3B, StableLM 2 1.6B and 12B, Stable Code 3B."""
    parallel = k.get("use_parallel_residual", False)
    return dict(
        **shape_fields(
            k, vocab_size=50304, hidden_size=2560, intermediate_size=6912, layers=32, heads=32, kv_heads=32, context=4096,
            fraction=0.25,
        ),
        **_LAYER_NORM,
        norm_eps=k.get("layer_norm_eps", 1e-5),
        activation=activation_of(k.get("hidden_act", "silu")),
        attn_bias=k.get("use_qkv_bias", False),
        qk_norm="each_head" if k.get("qk_layernorm", False) else None,
        parallel_residual=parallel,
        shared_attention_norm=parallel,
    )  # fmt: skip


def _gpt_neox(k: Keys) -> dict[str, Any]:
    """Pythia, GPT-NeoX 20B, Dolly v2, RedPajama-INCITE, StableLM alpha, StableCode alpha."""
    bias = k.get("attention_bias", True)
    shape = shape_fields(
        k, vocab_size=50432, hidden_size=6144, intermediate_size=24576, layers=44, heads=64, context=2048,
        theta_key="rotary_emb_base", fraction_key="rotary_pct", fraction=0.25,
    )  # fmt: skip
    return dict(
        **{**shape, "n_query_groups": shape["n_head"]},
        **_LAYER_NORM,
        norm_eps=k.get("layer_norm_eps", 1e-5),
        mlp="plain",
        activation=activation_of(k.get("hidden_act", "gelu")),
        attn_bias=bias,
        attn_out_bias=bias,
        mlp_bias=True,
        parallel_residual=k.get("use_parallel_residual", True),
    )


def _falcon(k: Keys) -> dict[str, Any]:
    """Falcon 7B, 11B, 40B and 180B."""
    new_architecture = k.get("new_decoder_architecture", False)
    multi_query, n_head = k.get("multi_query", True), k.size("num_attention_heads", 71)
    n_kv_heads = k.nullable("num_kv_heads", None) or n_head
    return _falcon_parts(
        k,
        n_embd=k.size("hidden_size", 4544),
        n_head=n_head,
        n_query_groups=n_kv_heads if new_architecture else 1 if multi_query else n_head,
        n_layer=k.size("num_hidden_layers", 32, MAX_LAYERS),
        vocab_size=k.size("vocab_size", 65024),
        parallel=k.get("parallel_attn", True) or new_architecture,
        n_norms=k.get("num_ln_in_parallel_attn", 2 if new_architecture else 1),
    )


def _refined_web(k: Keys) -> dict[str, Any]:
    """Falcon 7B (`RefinedWebModel`) and 40B (`RefinedWeb`) as first published, before transformers had them."""
    is_40b = k.get("model_type", None) == "RefinedWeb"
    multi_query, n_head = k.get("multi_query", False), k.size("n_head", 8)
    k.only("apply_residual_connection_post_layernorm", False)
    return _falcon_parts(
        k,
        n_embd=k.size("hidden_size", 64),
        n_head=n_head,
        n_query_groups=k.get("n_head_kv", n_head) if is_40b else 1 if multi_query else n_head,
        n_layer=k.size("n_layer", 2, MAX_LAYERS),
        vocab_size=k.size("vocab_size", 250880),
        parallel=is_40b or k.get("parallel_attn", False),
        n_norms=2 if is_40b else 1,
    )


def _falcon_parts(
    k: Keys, *, n_embd: int, n_head: int, n_query_groups: int, n_layer: int, vocab_size: int, parallel: bool, n_norms: int
) -> dict[str, Any]:
    if k.get("alibi", False):
        raise ValueError("Falcon with ALiBi positions (falcon-rw) is not supported; the RoPE models (7B, 11B, 40B, 180B) are")
    bias, context = k.get("bias", False), k.size("max_position_embeddings", 2048)
    return dict(
        vocab_size=vocab_size,
        block_size=context,
        n_layer=n_layer,
        n_head=n_head,
        n_query_groups=n_query_groups,
        n_embd=n_embd,
        head_size=n_embd // n_head,
        intermediate_size=k.size("ffn_hidden_size", 4 * n_embd),
        **_LAYER_NORM,
        norm_eps=k.get("layer_norm_epsilon", 1e-5),
        mlp="plain",
        activation=activation_of(k.get("activation", "gelu")),
        attn_bias=bias,
        attn_out_bias=bias,
        mlp_bias=bias,
        parallel_residual=parallel,
        shared_attention_norm=parallel and n_norms == 1,
        tie_embeddings=k.get("tie_word_embeddings", True),
        **rope_fields(k, n_embd // n_head, context),
    )


def _gpt2(k: Keys) -> dict[str, Any]:
    """GPT-2 and DistilGPT2."""
    k.only("scale_attn_by_inverse_layer_idx", False)
    k.only("reorder_and_upcast_attn", False)
    return _gpt2_parts(k, "gelu_new", multi_query=False)


def _gpt_bigcode(k: Keys) -> dict[str, Any]:
    """SantaCoder, StarCoder, StarCoderBase, TinyStarCoder."""
    k.unused("num_key_value_heads")  # follows from multi_query
    return _gpt2_parts(k, "gelu_pytorch_tanh", multi_query=k.get("multi_query", True))


def _gpt2_parts(k: Keys, activation: str, multi_query: bool) -> dict[str, Any]:
    k.only("scale_attn_weights", True)
    k.only("add_cross_attention", False)
    n_embd, n_head = k.size("n_embd", 768), k.size("n_head", 12)
    return dict(
        vocab_size=k.size("vocab_size", 50257),
        block_size=k.size("n_positions", 1024),
        n_layer=k.size("n_layer", 12, MAX_LAYERS),
        n_head=n_head,
        n_query_groups=1 if multi_query else n_head,
        n_embd=n_embd,
        head_size=n_embd // n_head,
        intermediate_size=k.size("n_inner", 4 * n_embd),
        **_LAYER_NORM,
        norm_eps=k.get("layer_norm_epsilon", 1e-5),
        mlp="plain",
        activation=activation_of(k.get("activation_function", activation)),
        attn_bias=True,
        attn_out_bias=True,
        mlp_bias=True,
        learned_positions=True,
        tie_embeddings=k.get("tie_word_embeddings", True),
    )


def _starcoder2(k: Keys) -> dict[str, Any]:
    """StarCoder2 3B, 7B and 15B."""
    bias = k.get("use_bias", True)
    k.unused("residual_dropout", "embedding_dropout")
    return dict(
        **shape_fields(
            k, vocab_size=49152, hidden_size=3072, intermediate_size=12288, layers=30, heads=24, kv_heads=2, context=4096,
            tie=True,
        ),
        **_LAYER_NORM,
        norm_eps=k.get("norm_epsilon", 1e-5),
        mlp="plain",
        activation=activation_of(k.get("hidden_act", "gelu_pytorch_tanh")),
        attn_bias=bias,
        attn_out_bias=bias,
        mlp_bias=bias,
        sliding_window=k.nullable("sliding_window", None),
    )  # fmt: skip


FAMILIES: dict[str, Callable[[Keys], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3_text,
    "phi": _phi,
    "phi3": _phi3,
    "olmo": _olmo,
    "olmo2": _olmo2,
    "smollm3": _smollm3,
    "stablelm": _stablelm,
    "gpt_neox": _gpt_neox,
    "falcon": _falcon,
    "RefinedWebModel": _refined_web,
    "RefinedWeb": _refined_web,
    "gpt2": _gpt2,
    "gpt_bigcode": _gpt_bigcode,
    "starcoder2": _starcoder2,
}
