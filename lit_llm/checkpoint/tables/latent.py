"""Names in families with multi-head latent attention."""

from collections.abc import Callable

from lit_llm.checkpoint.tables.experts import deepseek, shared, with_mixture
from lit_llm.checkpoint.tables.rows import GATED_MLP, PRE_NORMS, Table, model_table, stacked
from lit_llm.model.config import Config

_Q: Table = {"self_attn.q_proj": "attn.q"}
_Q_OF_LATENT: Table = {
    "self_attn.q_a_proj": "attn.q_down",
    "self_attn.q_a_layernorm": "attn.q_latent_norm",
    "self_attn.q_b_proj": "attn.q_up",
}
_ATTENTION: Table = {
    "self_attn.kv_a_proj_with_mqa": "attn.kv_down",
    "self_attn.kv_a_layernorm": "attn.kv_latent_norm",
    "self_attn.kv_b_proj": "attn.kv_up",
    "self_attn.o_proj": "attn.o",
}


def _rows(config: Config) -> Table:
    return PRE_NORMS | _ATTENTION | (_Q if config.q_latent_size is None else _Q_OF_LATENT)


def _mixture(config: Config) -> Table:
    return with_mixture(config, _rows(config), deepseek(config))


def _mistral4(config: Config) -> Table:
    """The experts are stored together, as transformers holds them."""
    experts: Table = {
        "mlp.experts.gate_up_proj": stacked("gate.weight", "up.weight"),
        "mlp.experts.down_proj": stacked("down.weight"),
    }
    return with_mixture(config, _rows(config), {"mlp.gate": "mlp.router"} | experts | shared("shared_experts"))


def _dense(config: Config) -> Table:
    return model_table(_rows(config) | GATED_MLP)


LATENT: dict[str, Callable[[Config], Table]] = {
    "deepseek_v2": _mixture,
    "deepseek_v3": _mixture,
    "kimi_k2": _mixture,
    "glm4_moe_lite": _mixture,
    "mistral4": _mistral4,
    "youtu": _dense,
    "minicpm3": _dense,
}
