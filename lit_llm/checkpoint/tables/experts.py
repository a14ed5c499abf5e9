"""Names in families with mixtures of experts."""

from collections.abc import Callable

from lit_llm.checkpoint.tables.rows import ATTENTION, GATED_MLP, PRE_NORMS, QK_NORMS, Table, model_table
from lit_llm.model.config import Config

_MIXTRAL: Table = {
    "block_sparse_moe.gate": "mlp.router",
    "block_sparse_moe.experts.{}.w1": "mlp.experts.{}.gate",
    "block_sparse_moe.experts.{}.w3": "mlp.experts.{}.up",
    "block_sparse_moe.experts.{}.w2": "mlp.experts.{}.down",
}


def _qwen3_moe(config: Config) -> Table:
    experts: Table = {f"mlp.experts.{{}}.{part}_proj": f"mlp.experts.{{}}.{part}" for part in ("gate", "up", "down")}
    kinds = {config.has_experts(layer) for layer in range(config.n_layer)}
    mlps = ({"mlp.gate": "mlp.router", **experts} if True in kinds else {}) | (GATED_MLP if False in kinds else {})
    return model_table(PRE_NORMS | ATTENTION | QK_NORMS | mlps)


EXPERTS: dict[str, Callable[[Config], Table]] = {
    "mixtral": lambda config: model_table(PRE_NORMS | ATTENTION | _MIXTRAL),
    "qwen3_moe": _qwen3_moe,
}
