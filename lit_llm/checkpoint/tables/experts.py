"""Names in families with mixtures of experts."""

from collections.abc import Callable
from dataclasses import replace

from lit_llm.checkpoint.tables.dense import HUNYUAN_QK_NORMS
from lit_llm.checkpoint.tables.rows import (
    ATTENTION,
    GATED_MLP,
    POST_NORMS,
    PRE_NORMS,
    QK_NORMS,
    Row,
    Table,
    fused,
    in_layers,
    model_table,
    stacked,
)
from lit_llm.model.config import Config

_MIXTRAL: Table = {
    "block_sparse_moe.gate": "mlp.router",
    "block_sparse_moe.experts.{}.w1": "mlp.experts.{}.gate",
    "block_sparse_moe.experts.{}.w3": "mlp.experts.{}.up",
    "block_sparse_moe.experts.{}.w2": "mlp.experts.{}.down",
}


def shared(name: str) -> Table:
    """Return the rows of the shared expert, which upstream calls `name`."""
    return {f"mlp.{name}.{part}_proj": f"mlp.shared.{part}" for part in ("gate", "up", "down")}


_EXPERTS: Table = {f"mlp.experts.{{}}.{part}_proj": f"mlp.experts.{{}}.{part}" for part in ("gate", "up", "down")}
QWEN = {"mlp.gate": "mlp.router"} | _EXPERTS
GATED_SHARED = shared("shared_expert") | {"mlp.shared_expert_gate": "mlp.shared_router"}


def deepseek(config: Config) -> Table:
    """The mixture of DeepSeek V3, which others took over."""
    bias: Table = {"mlp.gate.e_score_correction_bias": "mlp.router.choice_bias"} if config.choice_bias else {}
    return QWEN | bias | (shared("shared_experts") if config.shared_expert_size else {})


def _ernie(config: Config) -> Table:
    return deepseek(replace(config, choice_bias=False)) | {
        "mlp.moe_statics.e_score_correction_bias": Row("h.{}.mlp.router.choice_bias"),
    }


def _exaone(config: Config) -> Table:
    return deepseek(replace(config, choice_bias=False)) | {"mlp.e_score_correction_bias": "mlp.router.choice_bias"}


def _granite(config: Config) -> Table:
    fused_mlp: Table = {
        "shared_mlp.input_linear": fused("mlp.shared.gate", "mlp.shared.up"),
        "shared_mlp.output_linear": "mlp.shared.down",
    }
    return {
        "block_sparse_moe.router.layer": "mlp.router",
        "block_sparse_moe.input_linear.weight": stacked("gate.weight", "up.weight"),
        "block_sparse_moe.output_linear.weight": stacked("down.weight"),
    } | (fused_mlp if config.shared_expert_size else {})


def _hunyuan(config: Config) -> Table:
    return {"mlp.gate.wg": "mlp.router"} | _EXPERTS | shared("shared_mlp")


_GPT_OSS: Table = {
    "self_attn.sinks": "attn.sinks",
    "mlp.router": "mlp.router",
    "mlp.experts.gate_up_proj": stacked("gate.weight", "up.weight", transposed=True, interleaved=True),
    "mlp.experts.gate_up_proj_bias": stacked("gate.bias", "up.bias", interleaved=True),
    "mlp.experts.down_proj": stacked("down.weight", transposed=True),
    "mlp.experts.down_proj_bias": stacked("down.bias"),
}


_FEED_FORWARD: Table = {f"feed_forward.{part}_proj": f"mlp.{part}" for part in ("gate", "up", "down")}
_LLAMA4: Table = {
    "feed_forward.router": "mlp.router",
    "feed_forward.experts.gate_up_proj": stacked("gate.weight", "up.weight", transposed=True),
    "feed_forward.experts.down_proj": stacked("down.weight", transposed=True),
    **{f"feed_forward.shared_expert.{part}_proj": f"mlp.shared.{part}" for part in ("gate", "up", "down")},
}


def with_mixture(config: Config, rows: Table, mixture: Table, mlp: Table = GATED_MLP, norm: str = "norm") -> Table:
    """Return a table with the rows of a layer, and of mixtures and MLPs where a layer has them."""
    kinds = {config.has_experts(layer) for layer in range(config.n_layer)}
    return model_table(rows | (mixture if True in kinds else {}) | (mlp if False in kinds else {}), norm=norm)


def together(table: Table) -> Table:
    """Return the rows of files that hold all experts of a layer in one tensor, as transformers' modules do, for a table with a
    row for each part of an expert."""
    if "model.layers.{}.mlp.experts.{}.gate_proj" not in table:
        return {}
    rows: Table = {
        "mlp.experts.gate_up_proj": stacked("gate.weight", "up.weight"),
        "mlp.experts.down_proj": stacked("down.weight"),
    }
    return in_layers("model.layers", rows)


EXPERTS: dict[str, Callable[[Config], Table]] = {
    "mixtral": lambda config: model_table(PRE_NORMS | ATTENTION | _MIXTRAL),
    "phimoe": lambda config: model_table(PRE_NORMS | ATTENTION | _MIXTRAL),
    "qwen2_moe": lambda config: with_mixture(config, PRE_NORMS | ATTENTION, QWEN | GATED_SHARED),
    "qwen3_moe": lambda config: with_mixture(config, PRE_NORMS | ATTENTION | QK_NORMS, QWEN),
    "olmoe": lambda config: model_table(PRE_NORMS | ATTENTION | QK_NORMS | QWEN),
    "flex_olmo": lambda config: model_table(POST_NORMS | ATTENTION | QK_NORMS | QWEN),
    "dots1": lambda config: with_mixture(config, PRE_NORMS | ATTENTION | QK_NORMS, deepseek(config)),
    "glm4_moe": lambda config: with_mixture(
        config, PRE_NORMS | ATTENTION | (QK_NORMS if config.qk_norm else {}), deepseek(config)
    ),
    "solar_open": lambda config: model_table(PRE_NORMS | ATTENTION | deepseek(config)),
    "minimax_m2": lambda config: model_table(
        PRE_NORMS | ATTENTION | QK_NORMS | _MIXTRAL | {"block_sparse_moe.e_score_correction_bias": "mlp.router.choice_bias"}
    ),
    "granitemoe": lambda config: model_table(PRE_NORMS | ATTENTION | _granite(config)),
    "granitemoeshared": lambda config: model_table(PRE_NORMS | ATTENTION | _granite(config)),
    "hunyuan_v1_moe": lambda config: model_table(PRE_NORMS | ATTENTION | HUNYUAN_QK_NORMS | _hunyuan(config)),
    "gpt_oss": lambda config: model_table(PRE_NORMS | ATTENTION | _GPT_OSS),
    "exaone_moe": lambda config: with_mixture(config, PRE_NORMS | ATTENTION | QK_NORMS, _exaone(config)),
    "mellum": lambda config: with_mixture(config, PRE_NORMS | ATTENTION | QK_NORMS, QWEN),
    "llama4_text": lambda config: with_mixture(config, PRE_NORMS | ATTENTION, _LLAMA4, _FEED_FORWARD),
    "ernie4_5_moe": lambda config: with_mixture(config, PRE_NORMS | ATTENTION, _ernie(config)),
}
