"""Names in families in which some layers have another part in place of attention."""

from collections.abc import Callable

from lit_llm.checkpoint.tables.experts import GATED_SHARED, QWEN, with_mixture
from lit_llm.checkpoint.tables.rows import ATTENTION, GATED_MLP, PRE_NORMS, QK_NORMS, Table, fused, model_table
from lit_llm.model.config import Config

_LFM2_NORMS: Table = {"operator_norm": "norm_1", "ffn_norm": "norm_2"}
_LFM2_PARTS = {"w1": "gate", "w3": "up", "w2": "down"}
_LFM2_MLP: Table = {f"feed_forward.{theirs}": f"mlp.{ours}" for theirs, ours in _LFM2_PARTS.items()}
_LFM2_MIXERS: dict[str, Table] = {
    "attn": {
        **{f"self_attn.{part}_proj": f"attn.{part}" for part in "qkv"}, "self_attn.out_proj": "attn.o",
        "self_attn.q_layernorm": "attn.q_norm", "self_attn.k_layernorm": "attn.k_norm",
    },
    "conv": {"conv.in_proj": "conv.in_proj", "conv.conv": "conv.conv", "conv.out_proj": "conv.o"},
}  # fmt: skip


def with_mixers(config: Config, mixers: dict[str, Table]) -> Table:
    """Return the rows of those parts that some layer has in place of attention, and of attention where one has it."""
    kinds = {config.mixer(layer) for layer in range(config.n_layer)}
    return {theirs: ours for kind in kinds for theirs, ours in mixers[kind].items()}


_GATED_ATTENTION = ATTENTION | QK_NORMS | {"self_attn.q_proj": fused("attn.q", "attn.o_gate", blocks="n_head")}
_DELTA: Table = {
    **{f"linear_attn.{name}": f"delta.{name}" for name in ("A_log", "dt_bias", "norm")},
    "linear_attn.conv1d": "delta.conv", "linear_attn.out_proj": "delta.o",
}  # fmt: skip
_QWEN3_NEXT: dict[str, Table] = {
    "attn": _GATED_ATTENTION,
    "delta": _DELTA | {
        "linear_attn.in_proj_qkvz": fused("delta.q", "delta.k", "delta.v", "delta.o_gate", blocks="delta_key_heads"),
        "linear_attn.in_proj_ba": fused("delta.rate", "delta.decay", blocks="delta_key_heads"),
    },
}  # fmt: skip
_QWEN3_5: dict[str, Table] = {
    "attn": _GATED_ATTENTION,
    "delta": _DELTA | {
        "linear_attn.in_proj_qkv": fused("delta.q", "delta.k", "delta.v"), "linear_attn.in_proj_z": "delta.o_gate",
        "linear_attn.in_proj_b": "delta.rate", "linear_attn.in_proj_a": "delta.decay",
    },
}  # fmt: skip


def _with_experts(config: Config, mixers: dict[str, Table]) -> Table:
    return with_mixture(config, PRE_NORMS | with_mixers(config, mixers), QWEN | GATED_SHARED)


def _lfm2_moe(config: Config) -> Table:
    experts: Table = {f"feed_forward.experts.{{}}.{theirs}": f"mlp.experts.{{}}.{ours}" for theirs, ours in _LFM2_PARTS.items()}
    bias: Table = {"feed_forward.expert_bias": "mlp.router.choice_bias"} if config.choice_bias else {}
    mixture = {"feed_forward.gate": "mlp.router"} | experts | bias
    return with_mixture(config, _LFM2_NORMS | with_mixers(config, _LFM2_MIXERS), mixture, _LFM2_MLP, norm="embedding_norm")


HYBRID: dict[str, Callable[[Config], Table]] = {
    "qwen3_next": lambda config: _with_experts(config, _QWEN3_NEXT),
    "qwen3_5_text": lambda config: model_table(PRE_NORMS | with_mixers(config, _QWEN3_5) | GATED_MLP),
    "qwen3_5_moe_text": lambda config: _with_experts(config, _QWEN3_5),
    "lfm2": lambda config: model_table(_LFM2_NORMS | with_mixers(config, _LFM2_MIXERS) | _LFM2_MLP, norm="embedding_norm"),
    "lfm2_moe": _lfm2_moe,
}
