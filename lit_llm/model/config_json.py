"""Common parts of the `config.json` files of all families: keys that most of them share, RoPE and sliding windows."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from lit_llm.errors import CheckpointError
from lit_llm.schema import shown

Fields = dict[str, Any]

# Beyond these a config.json is broken or hostile: building the model would exhaust the memory, even without weights.
MAX_WEIGHTS = 10**13
MAX_LAYERS = 10_000
MAX_MODULES = 100_000

# Keys of `config.json` that do not change what the model computes at inference and finetuning.
_NEUTRAL_KEYS = frozenset(
    """_attn_implementation_autoset _model_name_or_path _name_or_path architectures attention_dropout
    attention_softmax_in_fp32 attn_pdrop auto_map bad_words_ids
    begin_suppress_tokens bos_token_id cache_implementation chunk_size_feed_forward classifier_dropout dtype embd_pdrop
    eos_token_id gradient_checkpointing hidden_dropout id2label inference_runner initializer_range is_decoder
    is_encoder_decoder label2id max_batch_size max_sequence_length model_type n_ctx output_attentions output_hidden_states
    output_router_logits pad_key_length pad_token_id pre_allocate_kv_cache pretraining_tp problem_type resid_pdrop return_dict
    router_aux_loss_coef scale_attention_softmax_in_fp32 summary_activation summary_first_dropout summary_proj_to_labels
    summary_type summary_use_proj task_specific_params torch_dtype transformers_version unk_token_id unsloth_fixed
    quantization_config unsloth_version use_cache validate_runner_input""".split()
)


def check_size(name: str, value: Any, limit: int = 2**31) -> int:
    """Return the value. Raise CheckpointError unless it is a positive integer up to `limit`."""
    if type(value) is not int or not 0 < value <= limit:
        raise CheckpointError(f"{name} must be a positive integer up to {limit}, found {shown(value)}")
    return value


def positive(name: str, value: Any) -> float:
    """Return the value as a float. Raise CheckpointError unless it is a positive number below 2^63, as torch needs integers."""
    if type(value) not in (int, float) or not 0 < value < 2**63:
        raise CheckpointError(f"{name} must be a positive number below 2^63, found {shown(value)}")
    return float(value)


class Keys:
    """A `config.json` that remembers which of its keys were read.

    Each method returns the value of a key, checked; `default`, which is upstream's, where it is missing or null.

    Args:
        spelled: The names that a family uses for some keys. None: it does not have the key.
    """

    def __init__(self, hf: Fields, spelled: Mapping[str, str | None] | None = None) -> None:
        self._hf, self._spelled = hf, {} if spelled is None else spelled
        self._read: set[str] = set()

    def name(self, key: str) -> str:
        """Return the name of a key in this family."""
        return self._spelled.get(key) or key

    def nullable(self, key: str, default: Any) -> Any:
        """Return the value, where null means none; `default` only where the key is missing."""
        name = self._spelled.get(key, key)
        if name is None:
            return default
        self._read.add(name)
        return self._hf.get(name, default)

    def get(self, key: str, default: Any) -> Any:
        """Return the value, of any type."""
        value = self.nullable(key, None)
        return default if value is None else value

    def _typed(self, key: str, default: Any, types: tuple[type, ...], expected: str) -> Any:
        value = self.get(key, default)
        if value is not None and type(value) not in types:
            raise CheckpointError(f"{self.name(key)} must be {expected}, found {shown(value)}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        return self._typed(key, default, (bool,), "true or false")

    def size(self, key: str, default: int, limit: int = 2**31) -> int:
        """Return the value, a positive integer up to `limit`."""
        return check_size(self.name(key), self.get(key, default), limit)

    def count(self, key: str, default: int) -> int:
        """Return the value, an integer that may be 0."""
        value = self.get(key, default)
        return value if value == 0 and type(value) is int else check_size(self.name(key), value)

    def layers(self, key: str, default: int) -> int:
        """Return the value, a number of layers."""
        return self.size(key, default, MAX_LAYERS)

    def optional_size(self, key: str, default: int | None) -> int | None:
        """Return the value, a positive integer, or None for null."""
        value = self.nullable(key, default)
        return None if value is None else check_size(self.name(key), value)

    def number(self, key: str, default: float | None) -> float | None:
        """Return the value, a positive number."""
        value = self.get(key, default)
        return None if value is None else positive(self.name(key), value)

    def optional_number(self, key: str, default: float | None) -> float | None:
        """Return the value, a positive number, or None for null."""
        value = self.nullable(key, default)
        return None if value is None else positive(self.name(key), value)

    def object(self, key: str) -> Fields:
        """Return the value, an object, without its keys that are null."""
        value = self._typed(key, {}, (dict,), "an object")
        return {name: part for name, part in value.items() if part is not None}

    def per_layer(self, key: str, n_layer: int) -> list[Any] | None:
        """Return the value, a list with an entry for each layer."""
        value = self._typed(key, None, (list,), f"a list with an entry for each of {n_layer} layers")
        if value is not None and len(value) != n_layer:
            raise CheckpointError(f"{key} must have an entry for each of {n_layer} layers, found {len(value)}: {shown(value)}")
        return value

    def integers(self, key: str) -> list[int]:
        """Return the value, a list of integers."""
        value = self._typed(key, [], (list,), "a list of integers")
        if wrong := [item for item in value if type(item) is not int]:
            raise CheckpointError(f"{key} must be a list of integers, found {shown(wrong[0])} in it")
        return value

    def activation(self, key: str, default: str) -> str:
        """Return our name of an activation function."""
        name = self.get(key, default)
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            found = f"{self.name(key)} = {shown(name)}"
            raise CheckpointError(f"activation {found} is not supported; supported: {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[name]

    def only(self, key: str, *allowed: Any) -> Any:
        """Return the value, the first allowed one where it is missing. Raise CheckpointError for any other."""
        value = self.get(key, allowed[0])
        if value not in allowed:
            raise CheckpointError(f"{key} = {shown(value)} is not supported; supported: {', '.join(map(shown, allowed))}")
        return allowed[allowed.index(value)]  # of our type: 4.0 is the integer 4

    def unused(self, *names: str) -> None:
        """Count these as read: upstream writes them, but computes nothing from them."""
        self._read.update(names)

    def unread(self) -> list[str]:
        given = {name for name, value in self._hf.items() if value is not None}
        return sorted(given - self._read - _NEUTRAL_KEYS)


_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "xielu": "xielu",
}

# Each key by its common name: how it is read, and the fields of Config that it sets.
_FIELDS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "vocab_size": (Keys.size, ("vocab_size",)),
    "hidden_size": (Keys.size, ("n_embd",)),
    "num_hidden_layers": (Keys.layers, ("n_layer",)),
    "num_attention_heads": (Keys.size, ("n_head",)),
    "num_key_value_heads": (Keys.optional_size, ("n_query_groups",)),
    "head_dim": (Keys.size, ("head_size",)),
    "v_head_dim": (Keys.size, ("v_head_size",)),
    "kv_lora_rank": (Keys.size, ("kv_latent_size",)),
    "q_lora_rank": (Keys.optional_size, ("q_latent_size",)),
    "intermediate_size": (Keys.size, ("intermediate_size",)),
    "max_position_embeddings": (Keys.size, ("block_size",)),
    "tie_word_embeddings": (Keys.flag, ("tie_embeddings",)),
    "hidden_act": (Keys.activation, ("activation",)),
    "rms_norm_eps": (Keys.number, ("norm_eps",)),
    "attention_bias": (Keys.flag, ("attn_bias", "attn_out_bias")),
    "attention_out_bias": (Keys.flag, ("attn_out_bias",)),
    "mlp_bias": (Keys.flag, ("mlp_bias",)),
    "clip_qkv": (Keys.number, ("clip_qkv",)),
    "sliding_window": (Keys.optional_size, ("sliding_window",)),
    "attn_logit_softcapping": (Keys.optional_number, ("attention_softcap",)),
    "attention_multiplier": (Keys.number, ("attention_scale",)),
    "embedding_multiplier": (Keys.number, ("embedding_scale",)),
    "residual_multiplier": (Keys.number, ("residual_scale",)),
    "logit_scale": (Keys.number, ("logit_scale",)),
    "final_logit_softcapping": (Keys.optional_number, ("logit_softcap",)),
    "use_parallel_residual": (Keys.flag, ("parallel_residual",)),
    "num_local_experts": (Keys.size, ("n_expert",)),
    "num_experts_per_tok": (Keys.size, ("n_expert_per_token",)),
    "moe_intermediate_size": (Keys.size, ("expert_size",)),
    "norm_topk_prob": (Keys.flag, ("normalize_expert_weights",)),
    "routed_scaling_factor": (Keys.number, ("routed_scale",)),
    "n_group": (Keys.size, ("n_expert_group",)),
    "topk_group": (Keys.size, ("n_chosen_group",)),
    "router_jitter_noise": (Keys.number, ("router_jitter",)),
    "lm_head_bias": (Keys.flag, ("lm_head_bias",)),
    "conv_L_cache": (Keys.size, ("conv_size",)),
    "conv_bias": (Keys.flag, ("conv_bias",)),
    "linear_num_value_heads": (Keys.size, ("delta_heads",)),
    "linear_num_key_heads": (Keys.size, ("delta_key_heads",)),
    "linear_key_head_dim": (Keys.size, ("delta_key_size",)),
    "linear_value_head_dim": (Keys.size, ("delta_value_size",)),
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
# Fields that transformers reads for no type; other programs compute something else from them.
_ONLY_ELSEWHERE = frozenset(("attn_factor", "short_mscale", "long_mscale"))
# Fields that a type ignores, as it does those of other types.
_IGNORED_IN_ROPE = {"finetuned"}.union(*(needed + optional for needed, optional in ROPE_TYPES.values())) | _ONLY_ELSEWHERE


def rope_parameters(k: Keys) -> Fields:
    """Return RoPE's parameters, which old files have in `rope_scaling` and new ones in `rope_parameters`."""
    new = k.object("rope_parameters")
    return k.object("rope_scaling") or new  # transformers takes the old ones instead of the new ones, not in addition


def rope_fields(k: Keys, head_size: int, context: int, parameters: Fields, defaults: Fields) -> Fields:
    """Return the RoPE fields of Config, and `block_size`, the context that scaling extends.

    Args:
        context: max_position_embeddings.
        parameters: As `rope_parameters` returns them. Missing ones are read from keys of their own, as in old files.
        defaults: The family's, by common name.
    """
    scaling = {name: value for name, value in parameters.items() if value is not None}
    defaults = _ROPE_KEYS | defaults
    theta, fraction = (
        positive(k.name(key), scaling.pop(key, k.get(key, defaults[key]))) for key in ("rope_theta", "partial_rotary_factor")
    )
    old_name = scaling.pop("type", "default")
    scaling.setdefault("rope_type", old_name)
    original = k.get("original_max_position_embeddings", defaults["original_max_position_embeddings"])
    rotary_size = int(head_size * min(fraction, 2))
    if not 0 < rotary_size <= head_size or rotary_size % 2:
        raise CheckpointError(
            f"{k.name('partial_rotary_factor')} must give an even part of the head's {head_size} dimensions, found {fraction}"
        )
    scaling = _rope_scaling(scaling, context, original)
    check_rope(scaling, rotary_size, theta)
    extended = {"linear": context, "dynamic": context}.get(
        scaling["rope_type"], scaling.get("original_max_position_embeddings")
    )
    if scaling["rope_type"] not in ("default", "llama3"):  # max_position_embeddings of the others may be that before scaling
        context = max(context, check_size("the context times rope_scaling's factor", int(extended * scaling["factor"])))
    return {
        "block_size": context,
        "rotary_size": rotary_size,
        "rope_theta": theta,
        "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
    }


def _rope_scaling(scaling: Fields, context: int, original: int | None) -> Fields:
    """Complete the fields of a scaling type, and drop those that it does not read.

    Args:
        context: max_position_embeddings, the default of the length before scaling.
        original: The length before scaling, if config.json has it outside of the scaling's own fields.
    """
    rope_type = scaling["rope_type"]
    if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
        raise CheckpointError(f"rope_scaling type {shown(rope_type)} is not supported; supported: {', '.join(ROPE_TYPES)}")
    needed, optional = ROPE_TYPES[rope_type]
    if "original_max_position_embeddings" in needed:
        before = original if original is not None else scaling.get("original_max_position_embeddings", context)
        scaling["original_max_position_embeddings"] = check_size("original_max_position_embeddings", before)
        if rope_type != "llama3":
            scaling.setdefault("factor", context / before)
    if unknown := {name: value for name, value in scaling.items() if name not in {"rope_type", *_IGNORED_IN_ROPE}}:
        raise CheckpointError(
            f"rope_scaling has fields that are not supported: {shown(unknown)}. Type {rope_type!r} is computed from "
            f"{', '.join((*needed, *optional)) or 'rope_theta alone'}. Remove a field that does not change the model"
        )
    if other := sorted(scaling.keys() & _ONLY_ELSEWHERE):
        warnings.warn(
            f"rope_scaling has {', '.join(other)}, which transformers and lit_llm ignore, but vLLM reads. "
            "For another scale of cos and sin set attention_factor in config.json",
            stacklevel=2,
        )
    scaling = {name: value for name, value in scaling.items() if name in {"rope_type", *needed, *optional}}
    if rope_type == "dynamic":
        scaling["original_max_position_embeddings"] = context
    return scaling


def check_rope(scaling: Fields, rotary_size: int, theta: float) -> None:
    """Raise CheckpointError for RoPE scaling that its formula cannot use."""
    rope_type = scaling.get("rope_type")
    if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
        raise CheckpointError(f"rope_scaling type {shown(rope_type)} is not supported; supported: {', '.join(ROPE_TYPES)}")
    needed = {*ROPE_TYPES[rope_type][0], *(("original_max_position_embeddings",) if rope_type == "dynamic" else ())}
    if missing := sorted(needed - scaling.keys()):
        raise CheckpointError(f"rope_scaling of type {rope_type!r} lacks {', '.join(missing)}")
    if unknown := sorted(scaling.keys() - needed - {"rope_type", *ROPE_TYPES[rope_type][1]}):
        raise CheckpointError(f"rope_scaling of type {rope_type!r} has fields that it does not use: {shown(unknown)}")
    for name, value in scaling.items():
        if name in ("short_factor", "long_factor"):
            if not isinstance(value, list) or len(value) != rotary_size // 2:
                raise CheckpointError(
                    f"rope_scaling's {name} must be a list of {rotary_size // 2} numbers, found {shown(value)}"
                )
            scaling[name] = [positive(f"each number in rope_scaling's {name}", item) for item in value]
        elif name == "truncate":
            if not isinstance(value, bool):
                raise CheckpointError(f"rope_scaling's truncate must be true or false, found {shown(value)}")
        elif name != "rope_type" and not (name.startswith("mscale") and value == 0):  # 0 means unset
            positive(f"rope_scaling's {name}", value)
    low, high = scaling.get("low_freq_factor", 0), scaling.get("high_freq_factor", 1)
    if high <= low:
        raise CheckpointError(f"rope_scaling's high_freq_factor {high} must exceed its low_freq_factor {low}")
    if rope_type == "yarn" and theta <= 1:
        raise CheckpointError(f"rope_theta must exceed 1 for rope_scaling of type 'yarn', found {theta}")
    if rope_type == "dynamic" and rotary_size == 2:
        raise CheckpointError("rope_scaling of type 'dynamic' needs heads with more than 2 dimensions that rotate")
    if rope_type == "longrope" and scaling["original_max_position_embeddings"] == 1:
        raise CheckpointError("original_max_position_embeddings of rope_scaling must exceed 1, found 1")


def window_fields(k: Keys, n_layer: int, window: int | None, default: list[bool]) -> Fields:
    """Return the sliding window fields, by `layer_types` or, where it is missing, by `default`: whether each layer slides."""
    types = k.per_layer("layer_types", n_layer)
    slides = default
    if types is not None:
        if unknown := [kind for kind in types if kind not in ("full_attention", "sliding_attention")]:
            raise CheckpointError(
                f"layer_types {shown(unknown[0])} is not supported; supported: full_attention, sliding_attention"
            )
        slides = [kind == "sliding_attention" for kind in types]
    if not any(slides):
        return {}
    if window is None:
        raise CheckpointError("layer_types has sliding_attention, but sliding_window is not set")
    layers = [i for i, slide in enumerate(slides) if slide]
    return {"sliding_window": window, "sliding_layers": None if all(slides) else layers}
