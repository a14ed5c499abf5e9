"""What `config.json` of each family says about the maths: one small function per `model_type`."""

from collections.abc import Callable
from typing import Any

# Beyond these a config.json is broken or hostile: building the model would exhaust the memory, even without weights.
MAX_WEIGHTS = 10**13
MAX_LAYERS = 10_000
MAX_MODULES = 100_000

# Keys of `config.json` that do not change what the model computes at inference and finetuning.
_NEUTRAL_KEYS = frozenset(
    """_name_or_path architectures attention_dropout attention_softmax_in_fp32 attn_pdrop auto_map bad_words_ids
    begin_suppress_tokens bos_token_id cache_implementation chunk_size_feed_forward classifier_dropout dtype embd_pdrop
    eos_token_id gradient_checkpointing hidden_dropout id2label inference_runner initializer_range is_decoder
    is_encoder_decoder label2id max_batch_size max_sequence_length model_type n_ctx output_attentions output_hidden_states
    output_router_logits pad_key_length pad_token_id pre_allocate_kv_cache pretraining_tp problem_type resid_pdrop return_dict
    router_aux_loss_coef scale_attention_softmax_in_fp32 summary_activation summary_first_dropout summary_proj_to_labels
    summary_type summary_use_proj task_specific_params torch_dtype transformers_version unk_token_id use_cache
    validate_runner_input""".split()
)


def check_size(name: str, value: Any, limit: int = 2**31) -> int:
    """The value. Raises ValueError, naming it, unless it is a positive whole number up to `limit`."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= limit:
        raise ValueError(f"{name} must be a positive whole number up to {limit}, found {value!r}")
    return value


class Keys:
    """A `config.json` that remembers which of its keys were read."""

    def __init__(self, hf: dict[str, Any]) -> None:
        self._hf = hf
        self._read: set[str] = set()

    def get(self, name: str, default: Any) -> Any:
        """Value of `name`; `default`, which is upstream's, where it is missing or null."""
        self._read.add(name)
        value = self._hf.get(name)
        return default if value is None else value

    def nullable(self, name: str, default: Any) -> Any:
        """Value of `name`, where null means none; `default` only where it is missing."""
        self._read.add(name)
        return self._hf.get(name, default)

    def size(self, name: str, default: int, limit: int = 2**31) -> int:
        """Value of `name`, a positive whole number up to `limit`."""
        return check_size(name, self.get(name, default), limit)

    def only(self, name: str, *allowed: Any) -> Any:
        """Value of `name`, the first allowed one where missing. Raises ValueError for any other."""
        value = self.get(name, allowed[0])
        if value not in allowed:
            raise ValueError(f"{name} = {value!r} is not supported; supported: {', '.join(map(repr, allowed))}")
        return value

    def unused(self, *names: str) -> None:
        """Upstream writes these keys, but computes nothing from them."""
        self._read.update(names)

    def unread(self) -> list[str]:
        return sorted(self._hf.keys() - self._read - _NEUTRAL_KEYS)


_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def _activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not supported; supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


# Each type of RoPE scaling, the fields that it needs, and those that it may have.
ROPE_TYPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (("factor", "short_factor", "long_factor", "original_max_position_embeddings"), ("attention_factor",)),
}


def _rope(
    k: Keys,
    head_size: int,
    context: int,
    *,
    theta: float = 10000.0,
    theta_key: str = "rope_theta",
    fraction: float = 1.0,
    fraction_key: str = "partial_rotary_factor",
    original: int | None = None,
    parameters: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """RoPE fields from either generation of keys: `rope_theta` + `rope_scaling`, or `rope_parameters`.

    Args:
        context: max_position_embeddings.
        original: Default of original_max_position_embeddings.
        parameters: What stands in `rope_parameters`, where a family does not have it there.
    """
    if parameters is None:
        parameters = {**k.get("rope_parameters", {}), **k.get("rope_scaling", {})}
    scaling = {name: value for name, value in parameters.items() if value is not None}
    theta = scaling.pop("rope_theta", None) or k.get(theta_key, theta)
    fraction = scaling.pop("partial_rotary_factor", None) or k.get(fraction_key, fraction)
    old_name = scaling.pop("type", "default")
    scaling.setdefault("rope_type", old_name)
    original = k.get("original_max_position_embeddings", original)
    rotary_size = int(head_size * fraction)
    return {
        "rotary_size": rotary_size,
        "rope_theta": float(theta),
        "rope_scaling": _rope_scaling(scaling, rotary_size, context, original),
    }


def _rope_scaling(scaling: dict[str, Any], rotary_size: int, context: int, original: int | None) -> dict[str, Any] | None:
    """Complete and check the fields of a scaling type. None for the default type.

    Args:
        context: max_position_embeddings; where the length before scaling is not given, it is this.
        original: The length before scaling, where config.json has it outside of the scaling's own fields.
    """
    rope_type = scaling["rope_type"]
    if rope_type not in ROPE_TYPES:
        raise ValueError(f"rope_scaling type {rope_type!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    needed, optional = ROPE_TYPES[rope_type]
    if "original_max_position_embeddings" in needed:
        before = original or scaling.get("original_max_position_embeddings", context)
        scaling["original_max_position_embeddings"] = check_size("original_max_position_embeddings", before)
        if rope_type != "llama3":
            scaling.setdefault("factor", context / before)
    if unknown := sorted(scaling.keys() - {"rope_type", *needed, *optional}):
        raise ValueError(f"rope_scaling has fields that are not understood: {', '.join(unknown)}")
    if missing := sorted({*needed} - scaling.keys()):
        raise ValueError(f"rope_scaling of type {rope_type!r} lacks {', '.join(missing)}")
    for name in scaling.keys() - {"rope_type", "truncate", "short_factor", "long_factor"}:
        positive(f"rope_scaling's {name}", scaling[name])
    for name in scaling.keys() & {"short_factor", "long_factor"}:
        if not isinstance(scaling[name], list) or len(scaling[name]) != rotary_size // 2:
            raise ValueError(f"rope_scaling's {name} must be a list of {rotary_size // 2} numbers, found {scaling[name]!r}")
        scaling[name] = [positive(name, value) for value in scaling[name]]
    if rope_type == "dynamic":
        scaling["original_max_position_embeddings"] = context
    return None if rope_type == "default" else scaling


def positive(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive number, found {value!r}")
    return float(value)


def _shape(
    k: Keys,
    *,
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    layers: int,
    heads: int,
    context: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    tie: bool = False,
    **rope: Any,
) -> dict[str, Any]:
    """Fields from the key names that most families share. The arguments are upstream's defaults for missing keys."""
    n_embd, n_head = k.size("hidden_size", hidden_size), k.size("num_attention_heads", heads)
    head_size = k.get("head_dim", head_dim or n_embd // n_head)
    context = k.size("max_position_embeddings", context)
    return dict(
        vocab_size=k.size("vocab_size", vocab_size),
        block_size=context,
        n_layer=k.size("num_hidden_layers", layers, MAX_LAYERS),
        n_head=n_head,
        n_query_groups=k.nullable("num_key_value_heads", kv_heads) or n_head,
        n_embd=n_embd,
        head_size=head_size,
        intermediate_size=k.size("intermediate_size", intermediate_size),
        tie_embeddings=k.get("tie_word_embeddings", tie),
        **_rope(k, check_size("head_dim", head_size), context, **rope),
    )


def _window(k: Keys, n_layer: int, window: int | None, default: list[bool]) -> dict[str, Any]:
    """Sliding window fields from `layer_types`, or where it is missing from `default`: whether each layer slides."""
    types = k.get("layer_types", None)
    slides = default
    if types is not None:
        if not isinstance(types, list) or len(types) != n_layer:
            raise ValueError(f"layer_types must name the attention of each of {n_layer} layers, found {types!r}")
        if unknown := sorted(set(types) - {"full_attention", "sliding_attention"}):
            raise ValueError(f"layer_types {', '.join(map(repr, unknown))} are not supported")
        slides = [kind == "sliding_attention" for kind in types]
    if not any(slides):
        return {}
    if window is None:
        raise ValueError("layer_types has sliding_attention, but sliding_window is not set")
    layers = [i for i, slide in enumerate(slides) if slide]
    return {"sliding_window": window, "sliding_layers": None if all(slides) else layers}


def _llama(k: Keys) -> dict[str, Any]:
    bias = k.get("attention_bias", False)
    shape = _shape(
        k, vocab_size=32000, hidden_size=4096, intermediate_size=11008, layers=32, heads=32, context=2048,
    )  # fmt: skip
    if (ratio := k.get("rope_condense_ratio", 1)) != 1:  # LongChat's name for linear scaling
        if shape["rope_scaling"] not in (None, {"rope_type": "linear", "factor": ratio}):
            raise ValueError("rope_condense_ratio and rope_scaling contradict each other")
        shape["rope_scaling"] = {"rope_type": "linear", "factor": positive("rope_condense_ratio", ratio)}
    return dict(
        **shape,
        norm_eps=k.get("rms_norm_eps", 1e-6),
        activation=_activation(k.get("hidden_act", "silu")),
        attn_bias=bias,
        attn_out_bias=bias,
        mlp_bias=k.get("mlp_bias", False),
    )


def _smollm3(k: Keys) -> dict[str, Any]:
    """Llama with some layers without RoPE (https://arxiv.org/abs/2501.18795)."""
    shape = _shape(
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
        **_window(k, n_layer, window, slides),
        norm_eps=k.get("rms_norm_eps", 1e-6),
        activation=_activation(k.get("hidden_act", "silu")),
        attn_bias=bias,
        attn_out_bias=bias,
        mlp_bias=k.get("mlp_bias", False),
        no_rope_layers=[i for i, has in enumerate(has_rope) if not has] or None,
    )


def _mistral(k: Keys) -> dict[str, Any]:
    return dict(
        **_shape(
            k, vocab_size=32000, hidden_size=4096, intermediate_size=14336, layers=32, heads=32, kv_heads=8, context=131072,
        ),
        norm_eps=k.get("rms_norm_eps", 1e-6),
        activation=_activation(k.get("hidden_act", "silu")),
        sliding_window=k.nullable("sliding_window", 4096),
    )  # fmt: skip


def _mixtral(k: Keys) -> dict[str, Any]:
    shape = _shape(
        k, vocab_size=32000, hidden_size=4096, intermediate_size=14336, layers=32, heads=32, kv_heads=8, context=131072,
        theta=1000000.0,
    )  # fmt: skip
    k.only("router_jitter_noise", 0.0)
    return dict(
        **shape,
        norm_eps=k.get("rms_norm_eps", 1e-5),
        activation=_activation(k.get("hidden_act", "silu")),
        sliding_window=k.nullable("sliding_window", None),
        n_expert=k.size("num_local_experts", 8),
        n_expert_per_token=k.size("num_experts_per_tok", 2),
        expert_size=shape["intermediate_size"],
    )


def _qwen2(k: Keys) -> dict[str, Any]:
    shape = _shape(
        k, vocab_size=151936, hidden_size=4096, intermediate_size=22016, layers=32, heads=32, kv_heads=32, context=32768,
    )  # fmt: skip
    k.only("use_mrope", False)
    return dict(
        **shape,
        **_qwen_window(k, shape["n_layer"]),
        norm_eps=k.get("rms_norm_eps", 1e-6),
        activation=_activation(k.get("hidden_act", "silu")),
        attn_bias=True,
    )


def _qwen_window(k: Keys, n_layer: int) -> dict[str, Any]:
    """The first `max_window_layers` attend to everything, the later ones to the window."""
    window, full = k.nullable("sliding_window", 4096), k.get("max_window_layers", 28)
    if not k.get("use_sliding_window", False):
        window = None
    return _window(k, n_layer, window, [window is not None and i >= full for i in range(n_layer)])


def _qwen3(k: Keys) -> dict[str, Any]:
    shape = _shape(
        k, vocab_size=151936, hidden_size=4096, intermediate_size=22016, layers=32, heads=32, kv_heads=32, head_dim=128,
        context=32768,
    )  # fmt: skip
    bias = k.get("attention_bias", False)
    return dict(
        **shape,
        **_qwen_window(k, shape["n_layer"]),
        norm_eps=k.get("rms_norm_eps", 1e-6),
        activation=_activation(k.get("hidden_act", "silu")),
        attn_bias=bias,
        attn_out_bias=bias,
        qk_norm="head",
    )


def _qwen3_moe(k: Keys) -> dict[str, Any]:
    shape = _shape(
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
        activation=_activation(k.get("hidden_act", "silu")),
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
    activation = k.get("hidden_act", "gelu_pytorch_tanh")
    k.unused("hidden_activation")
    shape = _shape(
        k, vocab_size=256000, hidden_size=3072, intermediate_size=24576, layers=28, heads=16, kv_heads=16, head_dim=256,
        context=8192, tie=True,
    )  # fmt: skip
    # The first release wrote `gelu` and meant its approximation.
    return dict(**shape, **_gemma_parts(k), activation=_activation("gelu_pytorch_tanh" if activation == "gelu" else activation))


def _gemma_parts(k: Keys) -> dict[str, Any]:
    """What all generations of Gemma share."""
    k.only("use_bidirectional_attention", False)
    bias = k.get("attention_bias", False)
    eps = k.get("rms_norm_eps", 1e-6)
    return {"norm": "rms_plus_one", "norm_eps": eps, "attn_bias": bias, "attn_out_bias": bias, "scale_embeddings": True}


def _gemma2(k: Keys) -> dict[str, Any]:
    shape = _shape(
        k, vocab_size=256000, hidden_size=2304, intermediate_size=9216, layers=26, heads=8, kv_heads=4, head_dim=256,
        context=8192, tie=True,
    )  # fmt: skip
    n_layer = shape["n_layer"]
    k.unused("hidden_act")
    return dict(
        **shape,
        **_gemma_parts(k),
        **_window(k, n_layer, k.nullable("sliding_window", 4096), [i % 2 == 0 for i in range(n_layer)]),
        post_norm=True,
        activation=_activation(k.get("hidden_activation", "gelu_pytorch_tanh")),
        attention_scale=positive("query_pre_attn_scalar", k.get("query_pre_attn_scalar", 256)) ** -0.5,
        attention_softcap=k.nullable("attn_logit_softcapping", 50.0),
        logit_softcap=k.nullable("final_logit_softcapping", 30.0),
    )


def _gemma3_text(k: Keys) -> dict[str, Any]:
    """Layers with a sliding window have their own RoPE, so `rope_parameters` is keyed by the kind of layer."""
    kinds = k.get("rope_parameters", {})
    if unknown := sorted(kinds.keys() - {"full_attention", "sliding_attention"}):
        raise ValueError(f"rope_parameters has fields that are not understood: {', '.join(unknown)}")
    local = dict(kinds.get("sliding_attention") or {})
    local_theta = local.pop("rope_theta", None) or k.get("rope_local_base_freq", 10000.0)
    if local.pop("rope_type", "default") != "default" or local:
        raise ValueError(f"scaled RoPE in layers with a sliding window is not supported: {kinds['sliding_attention']}")
    shape = _shape(
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
        **_window(k, n_layer, k.nullable("sliding_window", 4096), [(i + 1) % pattern != 0 for i in range(n_layer)]),
        post_norm=True,
        qk_norm="head",
        activation=_activation(k.get("hidden_activation", "gelu_pytorch_tanh")),
        attention_scale=positive("query_pre_attn_scalar", k.get("query_pre_attn_scalar", 256)) ** -0.5,
        logit_softcap=k.nullable("final_logit_softcapping", None),
        local_rope_theta=float(local_theta),
    )


def _phi(k: Keys) -> dict[str, Any]:
    return dict(
        **_shape(
            k, vocab_size=51200, hidden_size=2048, intermediate_size=8192, layers=24, heads=32, context=2048, fraction=0.5,
        ),
        **_LAYER_NORM,
        norm_eps=k.get("layer_norm_eps", 1e-5),
        mlp="plain",
        activation=_activation(k.get("hidden_act", "gelu_new")),
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
    parameters = {**k.get("rope_parameters", {}), **k.get("rope_scaling", {})}
    for key in ("type", "rope_type"):
        if parameters.get(key) in ("su", "yarn"):  # what the first releases called it
            parameters[key] = "longrope"
    k.only("attention_bias", False)
    return dict(
        **_shape(
            k, vocab_size=32064, hidden_size=3072, intermediate_size=8192, layers=32, heads=32, context=4096,
            parameters=parameters, original=4096,
        ),
        norm_eps=k.get("rms_norm_eps", 1e-5),
        activation=_activation(k.get("hidden_act", "silu")),
        sliding_window=k.nullable("sliding_window", None),
    )  # fmt: skip


def _olmo(k: Keys) -> dict[str, Any]:
    bias = k.get("attention_bias", False)
    return dict(
        **_shape(k, vocab_size=50304, hidden_size=4096, intermediate_size=11008, layers=32, heads=32, context=2048),
        norm="layer_fixed",
        activation=_activation(k.get("hidden_act", "silu")),
        attn_bias=bias,
        attn_out_bias=bias,
        clip_qkv=k.get("clip_qkv", None),
    )


def _olmo2(k: Keys) -> dict[str, Any]:
    bias = k.get("attention_bias", False)
    return dict(
        **_shape(k, vocab_size=50304, hidden_size=4096, intermediate_size=11008, layers=32, heads=32, context=2048),
        norm_eps=k.get("rms_norm_eps", 1e-5),
        pre_norm=False,
        post_norm=True,
        qk_norm="row",
        activation=_activation(k.get("hidden_act", "silu")),
        attn_bias=bias,
        attn_out_bias=bias,
    )


def _stablelm(k: Keys) -> dict[str, Any]:
    parallel = k.get("use_parallel_residual", False)
    return dict(
        **_shape(
            k, vocab_size=50304, hidden_size=2560, intermediate_size=6912, layers=32, heads=32, kv_heads=32, context=4096,
            fraction=0.25,
        ),
        **_LAYER_NORM,
        norm_eps=k.get("layer_norm_eps", 1e-5),
        activation=_activation(k.get("hidden_act", "silu")),
        attn_bias=k.get("use_qkv_bias", False),
        qk_norm="each_head" if k.get("qk_layernorm", False) else None,
        parallel_residual=parallel,
        shared_attention_norm=parallel,
    )  # fmt: skip


def _gpt_neox(k: Keys) -> dict[str, Any]:
    bias = k.get("attention_bias", True)
    shape = _shape(
        k, vocab_size=50432, hidden_size=6144, intermediate_size=24576, layers=44, heads=64, context=2048,
        theta_key="rotary_emb_base", fraction_key="rotary_pct", fraction=0.25,
    )  # fmt: skip
    return dict(
        **{**shape, "n_query_groups": shape["n_head"]},
        **_LAYER_NORM,
        norm_eps=k.get("layer_norm_eps", 1e-5),
        mlp="plain",
        activation=_activation(k.get("hidden_act", "gelu")),
        attn_bias=bias,
        attn_out_bias=bias,
        mlp_bias=True,
        parallel_residual=k.get("use_parallel_residual", True),
    )


def _falcon(k: Keys) -> dict[str, Any]:
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
    """Falcon as first published, before transformers had it: `RefinedWebModel` is 7B, `RefinedWeb` 40B."""
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
        activation=_activation(k.get("activation", "gelu")),
        attn_bias=bias,
        attn_out_bias=bias,
        mlp_bias=bias,
        parallel_residual=parallel,
        shared_attention_norm=parallel and n_norms == 1,
        tie_embeddings=k.get("tie_word_embeddings", True),
        **_rope(k, n_embd // n_head, context),
    )


def _gpt2(k: Keys) -> dict[str, Any]:
    k.only("scale_attn_by_inverse_layer_idx", False)
    k.only("reorder_and_upcast_attn", False)
    return _gpt2_parts(k, "gelu_new", multi_query=False)


def _gpt_bigcode(k: Keys) -> dict[str, Any]:
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
        activation=_activation(k.get("activation_function", activation)),
        attn_bias=True,
        attn_out_bias=True,
        mlp_bias=True,
        learned_positions=True,
        tie_embeddings=k.get("tie_word_embeddings", True),
    )


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
}
