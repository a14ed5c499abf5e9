"""Names in families in which some layers have another part in place of attention."""

from collections.abc import Callable

from lit_llm.checkpoint.tables.rows import Table, model_table
from lit_llm.model.config import Config

_LFM2: Table = {
    "operator_norm": "norm_1", "ffn_norm": "norm_2",
    "feed_forward.w1": "mlp.gate", "feed_forward.w3": "mlp.up", "feed_forward.w2": "mlp.down",
}  # fmt: skip
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


HYBRID: dict[str, Callable[[Config], Table]] = {
    "lfm2": lambda config: model_table(_LFM2 | with_mixers(config, _LFM2_MIXERS), norm="embedding_norm"),
}
