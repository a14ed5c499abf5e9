"""The shape of a model, derived from the checkpoint's own `config.json`; one small entry per family."""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lit_llm.files import read_json_object

LIT_CONFIG = "lit_config.json"

# Keys of `config.json` that do not change what the model computes at inference and finetuning.
_NEUTRAL_KEYS = frozenset(
    """_name_or_path architectures attention_dropout attn_pdrop auto_map bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward classifier_dropout dtype embd_pdrop eos_token_id gradient_checkpointing hidden_dropout id2label
    initializer_range is_decoder is_encoder_decoder label2id max_sequence_length model_type output_attentions
    output_hidden_states pad_token_id pretraining_tp problem_type resid_pdrop return_dict torch_dtype transformers_version
    unk_token_id use_cache""".split()
)


@dataclass(frozen=True)
class Config:
    """What `GPT` computes. Sizes are numbers of elements; a field that a family does not use keeps its default."""

    model_type: str
    """Hugging Face name of the family; selects the table of weight names."""
    vocab_size: int
    """Rows of the embedding, padding included."""
    block_size: int
    """Longest sequence, in tokens."""
    n_layer: int
    n_head: int
    n_query_groups: int
    """Key/value heads: n_head is multi-head, 1 multi-query, anything between grouped-query attention."""
    n_embd: int
    head_size: int
    intermediate_size: int
    norm: str = "rms"
    """`rms` (https://arxiv.org/abs/1910.07467) or `layer` (https://arxiv.org/abs/1607.06450)."""
    norm_eps: float = 1e-5
    norm_bias: bool = False
    mlp: str = "gated"
    """`gated`: down(act(gate(x)) * up(x)) (https://arxiv.org/abs/2002.05202); `plain`: down(act(up(x)))."""
    activation: str = "silu"
    attn_bias: bool = False
    """Bias of the q, k and v projections."""
    attn_out_bias: bool = False
    mlp_bias: bool = False
    parallel_residual: bool = False
    """x + attn(norm_1(x)) + mlp(norm_2(x)) instead of attention first, MLP second."""
    shared_attention_norm: bool = False
    """Parallel residual with one norm for both branches."""
    rotary_size: int = 0
    """Leading dimensions of each head that RoPE rotates; the others carry no position."""
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    """Hugging Face's `rope_parameters` without theta: `rope_type` and what that type needs."""
    tie_embeddings: bool = False
    """The output layer uses the embedding's weight."""

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "block_size", "n_layer", "n_head", "n_query_groups", "n_embd", "head_size")
        for name in (*sizes, "intermediate_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 < value <= 2**31:
                raise ValueError(f"{name} must be a positive whole number below 2^31, found {value!r}")
        if self.n_head % self.n_query_groups:
            raise ValueError(f"{self.n_head} query heads cannot share {self.n_query_groups} key/value heads evenly")
        if not 0 <= self.rotary_size <= self.head_size or self.rotary_size % 2:
            raise ValueError(f"rotary_size must be even and at most head_size {self.head_size}, found {self.rotary_size}")

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> "Config":
        """Build from the dict of a Hugging Face `config.json`.

        Raises:
            ValueError: if the family is unknown, or a field changes the maths in a way that is not supported.
        """
        model_type = hf.get("model_type")
        if model_type not in FAMILIES:
            raise ValueError(f"model_type {model_type!r} is not supported; known families: {', '.join(sorted(FAMILIES))}")
        keys = _Keys(hf)
        config = cls(model_type=model_type, **FAMILIES[model_type](keys))
        if unread := keys.unread():
            warnings.warn(f"config.json has keys that lit_llm does not know and ignores: {', '.join(unread)}", stacklevel=2)
        return config

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Inverse of `to_dict`. Raises ValueError for a field that this version does not know."""
        if unknown := sorted(set(values) - {f.name for f in fields(cls)}):
            raise ValueError(f"{LIT_CONFIG} has unknown fields: {', '.join(unknown)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_checkpoint(cls, checkpoint_dir: Path) -> "Config":
        """Read `lit_config.json`, or else Hugging Face's `config.json`.

        Raises:
            FileNotFoundError: if the folder has neither.
            ValueError: if the file is not a config that we understand.
        """
        for name in (LIT_CONFIG, "config.json"):
            if (Path(checkpoint_dir) / name).is_file():
                return cls.from_file(Path(checkpoint_dir) / name)
        raise FileNotFoundError(
            f"{checkpoint_dir} has no config.json or {LIT_CONFIG}: it is not a checkpoint folder. "
            "Download one: python scripts/download.py --repo_id ORG/NAME"
        )

    @classmethod
    def from_file(cls, path: Path) -> "Config":
        """Read one of the two kinds of file. Raises ValueError, naming it, if it is not a config that we understand."""
        try:
            values = read_json_object(path)
            return cls.from_dict(values) if path.name == LIT_CONFIG else cls.from_hf(values)
        except (ValueError, TypeError) as error:
            raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


class _Keys:
    """A `config.json` that remembers which of its keys were read."""

    def __init__(self, hf: dict[str, Any]) -> None:
        self._hf = hf
        self._read: set[str] = set()

    def get(self, name: str, default: Any) -> Any:
        """Value of `name`; `default`, which is upstream's, where it is missing or null."""
        self._read.add(name)
        value = self._hf.get(name)
        return default if value is None else value

    def only(self, name: str, *allowed: Any) -> Any:
        """Value of `name`, the first allowed one where missing. Raises ValueError for any other."""
        value = self.get(name, allowed[0])
        if value not in allowed:
            raise ValueError(f"{name} = {value!r} is not supported; supported: {', '.join(map(repr, allowed))}")
        return value

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


def _rope(k: _Keys, head_size: int, *, theta_key: str = "rope_theta", fraction_key: str = "partial_rotary_factor",
          fraction: float = 1.0) -> dict[str, Any]:  # fmt: skip
    """RoPE fields from either generation of keys: `rope_theta` + `rope_scaling`, or `rope_parameters`."""
    old = k.get("rope_scaling", {})
    scaling = dict(k.get("rope_parameters", {}) or old)
    theta = scaling.pop("rope_theta", None) or k.get(theta_key, 10000.0)
    fraction = scaling.pop("partial_rotary_factor", None) or k.get(fraction_key, fraction)
    scaling["rope_type"] = scaling.pop("type", None) or scaling.get("rope_type", "default")
    if scaling["rope_type"] not in ROPE_TYPES:
        raise ValueError(f"rope_scaling type {scaling['rope_type']!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    known = {"rope_type", *ROPE_TYPES[scaling["rope_type"]]}
    if unknown := sorted(scaling.keys() - known):
        raise ValueError(f"rope_scaling has fields that are not understood: {', '.join(unknown)}")
    if missing := sorted(known - scaling.keys()):
        raise ValueError(f"rope_scaling of type {scaling['rope_type']!r} lacks {', '.join(missing)}")
    return {
        "rotary_size": int(head_size * fraction),
        "rope_theta": float(theta),
        "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
    }


# Each type of RoPE scaling and the fields that it needs.
ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def _llama(k: _Keys) -> dict[str, Any]:
    n_embd, n_head = k.get("hidden_size", 4096), k.get("num_attention_heads", 32)
    head_size = k.get("head_dim", n_embd // n_head)
    bias = k.get("attention_bias", False)
    return dict(
        vocab_size=k.get("vocab_size", 32000),
        block_size=k.get("max_position_embeddings", 2048),
        n_layer=k.get("num_hidden_layers", 32),
        n_head=n_head,
        n_query_groups=k.get("num_key_value_heads", n_head),
        n_embd=n_embd,
        head_size=head_size,
        intermediate_size=k.get("intermediate_size", 11008),
        norm_eps=k.get("rms_norm_eps", 1e-6),
        activation=_activation(k.get("hidden_act", "silu")),
        attn_bias=bias,
        attn_out_bias=bias,
        mlp_bias=k.get("mlp_bias", False),
        tie_embeddings=k.get("tie_word_embeddings", False),
        **_rope(k, head_size),
    )


def _gpt_neox(k: _Keys) -> dict[str, Any]:
    n_embd, n_head = k.get("hidden_size", 6144), k.get("num_attention_heads", 64)
    bias = k.get("attention_bias", True)
    return dict(
        vocab_size=k.get("vocab_size", 50432),
        block_size=k.get("max_position_embeddings", 2048),
        n_layer=k.get("num_hidden_layers", 44),
        n_head=n_head,
        n_query_groups=n_head,
        n_embd=n_embd,
        head_size=n_embd // n_head,
        intermediate_size=k.get("intermediate_size", 24576),
        norm="layer",
        norm_eps=k.get("layer_norm_eps", 1e-5),
        norm_bias=True,
        mlp="plain",
        activation=_activation(k.get("hidden_act", "gelu")),
        attn_bias=bias,
        attn_out_bias=bias,
        mlp_bias=True,
        parallel_residual=k.get("use_parallel_residual", True),
        tie_embeddings=k.get("tie_word_embeddings", False),
        **_rope(k, n_embd // n_head, theta_key="rotary_emb_base", fraction_key="rotary_pct", fraction=0.25),
    )


def _falcon(k: _Keys) -> dict[str, Any]:
    if k.get("alibi", False):
        raise ValueError("Falcon with ALiBi positions (falcon-rw) is not supported; the RoPE models (7B, 11B, 40B, 180B) are")
    n_embd, n_head = k.get("hidden_size", 4544), k.get("num_attention_heads", 71)
    new_architecture = k.get("new_decoder_architecture", False)
    n_kv_heads, multi_query = k.get("num_kv_heads", n_head), k.get("multi_query", True)
    parallel = k.get("parallel_attn", True) or new_architecture
    n_norms = k.get("num_ln_in_parallel_attn", 2 if new_architecture else 1)
    bias = k.get("bias", False)
    return dict(
        vocab_size=k.get("vocab_size", 65024),
        block_size=k.get("max_position_embeddings", 2048),
        n_layer=k.get("num_hidden_layers", 32),
        n_head=n_head,
        n_query_groups=n_kv_heads if new_architecture else 1 if multi_query else n_head,
        n_embd=n_embd,
        head_size=n_embd // n_head,
        intermediate_size=k.get("ffn_hidden_size", 4 * n_embd),
        norm="layer",
        norm_eps=k.get("layer_norm_epsilon", 1e-5),
        norm_bias=True,
        mlp="plain",
        activation=_activation(k.get("activation", "gelu")),
        attn_bias=bias,
        attn_out_bias=bias,
        mlp_bias=bias,
        parallel_residual=parallel,
        shared_attention_norm=parallel and n_norms == 1,
        tie_embeddings=k.get("tie_word_embeddings", True),
        **_rope(k, n_embd // n_head),
    )


FAMILIES: dict[str, Callable[[_Keys], dict[str, Any]]] = {
    "llama": _llama,
    "gpt_neox": _gpt_neox,
    "falcon": _falcon,
}
