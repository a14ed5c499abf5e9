"""Common parts of the `config.json` files of all families: keys that most of them share, RoPE and sliding windows."""

from collections.abc import Callable, Mapping
from typing import Any

from lit_llm.errors import CheckpointError

Fields = dict[str, Any]

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
    """Return the value. Raise CheckpointError unless it is a positive integer up to `limit`."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= limit:
        raise CheckpointError(f"{name} must be a positive integer up to {limit}, found {value!r}")
    return value


def positive(name: str, value: Any) -> float:
    """Return the value as a float. Raise CheckpointError unless it is a finite positive number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise CheckpointError(f"{name} must be a positive number, found {value!r}")
    return float(value)


class Keys:
    """A `config.json` that remembers which of its keys were read.

    Args:
        spelled: The names that a family uses for some keys. None: it does not have the key.
    """

    def __init__(self, hf: Fields, spelled: Mapping[str, str | None] | None = None) -> None:
        self._hf, self._spelled = hf, {} if spelled is None else spelled
        self._read: set[str] = set()

    def nullable(self, key: str, default: Any) -> Any:
        """Return the value, where null means none; `default` only where the key is missing."""
        name = self._spelled.get(key, key)
        if name is None:
            return default
        self._read.add(name)
        return self._hf.get(name, default)

    def get(self, key: str, default: Any) -> Any:
        """Return the value; `default`, which is upstream's, where it is missing or null."""
        value = self.nullable(key, None)
        return default if value is None else value

    def size(self, key: str, default: int, limit: int = 2**31) -> int:
        """Return the value, a positive integer up to `limit`."""
        return check_size(self._spelled.get(key) or key, self.get(key, default), limit)

    def layers(self, key: str, default: int) -> int:
        """Return the value, a number of layers."""
        return self.size(key, default, MAX_LAYERS)

    def activation(self, key: str, default: str) -> str:
        """Return our name of an activation function."""
        name = self.get(key, default)
        if name not in _ACTIVATIONS:
            raise CheckpointError(f"activation {name!r} is not supported; supported: {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[name]

    def only(self, key: str, *allowed: Any) -> Any:
        """Return the value, the first allowed one where it is missing. Raise CheckpointError for any other."""
        value = self.get(key, allowed[0])
        if value not in allowed:
            raise CheckpointError(f"{key} = {value!r} is not supported; supported: {', '.join(map(repr, allowed))}")
        return value

    def unused(self, *names: str) -> None:
        """Count these as read: upstream writes them, but computes nothing from them."""
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

# Each key by its common name: how it is read, and the fields of Config that it sets.
_FIELDS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "vocab_size": (Keys.size, ("vocab_size",)),
    "hidden_size": (Keys.size, ("n_embd",)),
    "num_hidden_layers": (Keys.layers, ("n_layer",)),
    "num_attention_heads": (Keys.size, ("n_head",)),
    "num_key_value_heads": (Keys.nullable, ("n_query_groups",)),
    "head_dim": (Keys.size, ("head_size",)),
    "intermediate_size": (Keys.size, ("intermediate_size",)),
    "max_position_embeddings": (Keys.size, ("block_size",)),
    "tie_word_embeddings": (Keys.get, ("tie_embeddings",)),
    "hidden_act": (Keys.activation, ("activation",)),
    "rms_norm_eps": (Keys.get, ("norm_eps",)),
    "attention_bias": (Keys.get, ("attn_bias", "attn_out_bias")),
    "mlp_bias": (Keys.get, ("mlp_bias",)),
    "clip_qkv": (Keys.get, ("clip_qkv",)),
    "sliding_window": (Keys.nullable, ("sliding_window",)),
    "attn_logit_softcapping": (Keys.nullable, ("attention_softcap",)),
    "final_logit_softcapping": (Keys.nullable, ("logit_softcap",)),
    "use_parallel_residual": (Keys.get, ("parallel_residual",)),
    "num_local_experts": (Keys.size, ("n_expert",)),
    "num_experts_per_tok": (Keys.size, ("n_expert_per_token",)),
}
# Defaults that depend on the keys before them.
_DERIVED: dict[str, Callable[[Fields], int]] = {
    "head_dim": lambda fields: fields["n_embd"] // fields["n_head"],
    "intermediate_size": lambda fields: 4 * fields["n_embd"],
}
_ROPE_KEYS = {"rope_theta": 10000.0, "partial_rotary_factor": 1.0, "original_max_position_embeddings": None}


def read_keys(k: Keys, defaults: Fields) -> Fields:
    """Return fields of Config from the keys of a family, given its defaults by common name; `rope_fields` reads those of RoPE.

    A default of None is what `_DERIVED` says, else none.
    """
    fields: Fields = {}
    for key, default in defaults.items():
        if key not in _ROPE_KEYS:
            read, names = _FIELDS[key]
            if default is None and key in _DERIVED:
                default = _DERIVED[key](fields)
            fields |= dict.fromkeys(names, read(k, key, default))
    return fields | {"n_query_groups": fields["n_query_groups"] or fields["n_head"]}


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


def rope_parameters(k: Keys) -> Fields:
    """Return RoPE's parameters, which old files have in `rope_scaling` and new ones in `rope_parameters`."""
    return {**k.get("rope_parameters", {}), **k.get("rope_scaling", {})}


def rope_fields(k: Keys, head_size: int, context: int, parameters: Fields, defaults: Fields) -> Fields:
    """Return the RoPE fields of Config.

    Args:
        context: max_position_embeddings.
        parameters: As `rope_parameters` returns them. Missing ones are read from keys of their own, as in old files.
        defaults: The family's, by common name.
    """
    scaling = {name: value for name, value in parameters.items() if value is not None}
    defaults = _ROPE_KEYS | defaults
    theta, fraction = (scaling.pop(key, None) or k.get(key, defaults[key]) for key in ("rope_theta", "partial_rotary_factor"))
    old_name = scaling.pop("type", "default")
    scaling.setdefault("rope_type", old_name)
    original = k.get("original_max_position_embeddings", defaults["original_max_position_embeddings"])
    rotary_size = int(head_size * fraction)
    return {
        "rotary_size": rotary_size,
        "rope_theta": float(theta),
        "rope_scaling": _rope_scaling(scaling, rotary_size, context, original),
    }


def _rope_scaling(scaling: Fields, rotary_size: int, context: int, original: int | None) -> Fields | None:
    """Complete and check the fields of a scaling type. Return None for the default type.

    Args:
        context: max_position_embeddings, the default of the length before scaling.
        original: The length before scaling, if config.json has it outside of the scaling's own fields.
    """
    rope_type = scaling["rope_type"]
    if rope_type not in ROPE_TYPES:
        raise CheckpointError(f"rope_scaling type {rope_type!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    needed, optional = ROPE_TYPES[rope_type]
    if "original_max_position_embeddings" in needed:
        before = original or scaling.get("original_max_position_embeddings", context)
        scaling["original_max_position_embeddings"] = check_size("original_max_position_embeddings", before)
        if rope_type != "llama3":
            scaling.setdefault("factor", context / before)
    if unknown := sorted(scaling.keys() - {"rope_type", *needed, *optional}):
        raise CheckpointError(f"rope_scaling has fields that are not supported: {', '.join(unknown)}")
    if missing := sorted({*needed} - scaling.keys()):
        raise CheckpointError(f"rope_scaling of type {rope_type!r} lacks {', '.join(missing)}")
    for name in scaling.keys() - {"rope_type", "truncate", "short_factor", "long_factor"}:
        positive(f"rope_scaling's {name}", scaling[name])
    for name in scaling.keys() & {"short_factor", "long_factor"}:
        if not isinstance(scaling[name], list) or len(scaling[name]) != rotary_size // 2:
            raise CheckpointError(
                f"rope_scaling's {name} must be a list of {rotary_size // 2} numbers, found {scaling[name]!r}"
            )
        scaling[name] = [positive(name, value) for value in scaling[name]]
    if rope_type == "dynamic":
        scaling["original_max_position_embeddings"] = context
    return None if rope_type == "default" else scaling


def window_fields(k: Keys, n_layer: int, window: int | None, default: list[bool]) -> Fields:
    """Return the sliding window fields, by `layer_types` or, where it is missing, by `default`: whether each layer slides."""
    types = k.get("layer_types", None)
    slides = default
    if types is not None:
        if not isinstance(types, list) or len(types) != n_layer:
            raise CheckpointError(f"layer_types must name the attention of each of {n_layer} layers, found {types!r}")
        if unknown := sorted(set(types) - {"full_attention", "sliding_attention"}):
            raise CheckpointError(f"layer_types {', '.join(map(repr, unknown))} are not supported")
        slides = [kind == "sliding_attention" for kind in types]
    if not any(slides):
        return {}
    if window is None:
        raise CheckpointError("layer_types has sliding_attention, but sliding_window is not set")
    layers = [i for i, slide in enumerate(slides) if slide]
    return {"sliding_window": window, "sliding_layers": None if all(slides) else layers}
