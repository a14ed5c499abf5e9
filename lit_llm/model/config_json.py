"""What the `config.json` of all families has in common: its keys, and the fields that most families spell alike."""

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


def activation_of(name: str) -> str:
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


def rope_fields(
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


def shape_fields(
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
        **rope_fields(k, check_size("head_dim", head_size), context, **rope),
    )


def window_fields(k: Keys, n_layer: int, window: int | None, default: list[bool]) -> dict[str, Any]:
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
