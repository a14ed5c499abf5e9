"""Rules that read the maths of each family from its `config.json`: a row per `model_type`.

A row differs from Llama's: other keys or names of keys, other defaults of missing keys, other fixed fields of `Config`. Values
that depend on more than one key come from a function.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from lit_llm.errors import CheckpointError
from lit_llm.model.config_json import Fields, Keys, positive, read_keys, rope_fields, rope_parameters
from lit_llm.schema import shown


@dataclass(frozen=True)
class Family:
    """How to turn the `config.json` of a family into fields of `Config`. Steps apply in the order of these fields."""

    published: str
    """Checkpoints, for tutorials/models.md."""
    keys: Fields = field(default_factory=dict)
    """Keys that the family has in addition to Llama's, or with another default (upstream's), by their common name."""
    spelled: dict[str, str | None] = field(default_factory=dict)
    """Own names of keys by their common name. None: the family does not have the key, its default always holds."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Other names of keys, as published files have them."""
    fixed: Fields = field(default_factory=dict)
    """Fields of `Config` that do not depend on keys."""
    only: Fields = field(default_factory=dict)
    """Keys with the one value that is supported."""
    unused: tuple[str, ...] = ()
    """Keys that upstream writes and does not read."""
    rope: Callable[[Keys], Fields] | None = rope_parameters
    """Returns the parameters of RoPE. None: the family has no RoPE."""
    more: Callable[[Keys, Fields], Fields] = lambda k, fields: {}
    """Returns fields that depend on several keys, given the other fields."""

    def fields(self, hf: Fields) -> tuple[Fields, list[str]]:
        """Return the fields of `Config`, and the keys of `hf` that the family does not have.

        Raises:
            CheckpointError: if a key has a value that is not supported.
        """
        k = Keys({self.aliases.get(name, name): value for name, value in hf.items()}, self.spelled)
        fields = read_keys(k, LLAMA_KEYS | self.keys)
        if self.rope is not None:
            fields |= rope_fields(k, fields["head_size"], fields["block_size"], self.rope(k), self.keys)
        for name, value in self.only.items():
            k.only(name, value)
        k.unused(*self.unused)
        fields |= self.fixed
        return fields | self.more(k, fields), k.unread()


# Keys that all families have, under this name or another, with Llama's defaults.
LLAMA_KEYS: Fields = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,  # num_attention_heads
    "head_dim": None,  # hidden_size / num_attention_heads
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
}
LAYER_NORM: Fields = {"norm": "layer", "norm_bias": True}
PLAIN_LAYER_NORM: Fields = {**LAYER_NORM, "mlp": "plain"}
ALL_BIASES: Fields = {"attn_bias": True, "attn_out_bias": True, "mlp_bias": True}
MISTRAL: Fields = {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072}
QWEN: Fields = {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768}
LAYER_NORM_EPS: dict[str, str | None] = {"rms_norm_eps": "layer_norm_eps"}


def used_window(k: Keys, default: int | None) -> int | None:
    """Return the sliding window of families with a flag that switches it on."""
    if k.flag("use_sliding_window", False):
        return k.optional_size("sliding_window", default)
    k.unused("sliding_window")  # transformers writes 0
    return None


def without_rope(n_layer: int, window: Fields) -> Fields:
    """Return the field for layers that have RoPE only if they have the sliding window of `window_fields`."""
    sliding = window.get("sliding_layers") or range(n_layer if window else 0)
    return {"no_rope_layers": [i for i in range(n_layer) if i not in sliding] or None}


def rope_or(default: Fields) -> Callable[[Keys], Fields]:
    """Return a `rope` for families with other parameters of RoPE than plain ones where config.json has none."""
    return lambda k: rope_parameters(k) or default


def rope_of_full_layers(k: Keys) -> Fields:
    """Return the parameters of RoPE in layers that attend to all positions, where `rope_parameters` has a set for each kind."""
    return {**_rope_by_kind(k).get("full_attention", {}), **k.object("rope_scaling")}


def local_theta(k: Keys, default: float) -> float:
    """Return theta of the layers with a sliding window. Raise CheckpointError if their RoPE is scaled."""
    given = _rope_by_kind(k).get("sliding_attention", {})
    local = {name: value for name, value in given.items() if value is not None}
    theta = positive("rope_theta of sliding_attention", local.pop("rope_theta", default))
    if local.pop("rope_type", "default") != "default" or local:
        raise CheckpointError(f"scaled RoPE in layers with a sliding window is not supported: {shown(given)}")
    return theta


def _rope_by_kind(k: Keys) -> Fields:
    kinds = k.object("rope_parameters")
    if unknown := sorted(kinds.keys() - {"full_attention", "sliding_attention"}):
        raise CheckpointError(f"rope_parameters has fields that are not supported: {shown(unknown)}")
    if wrong := [kind for kind, value in kinds.items() if not isinstance(value, dict)]:
        raise CheckpointError(f"rope_parameters.{wrong[0]} must be an object, found {shown(kinds[wrong[0]])}")
    return kinds
