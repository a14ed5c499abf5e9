"""Names in families like Llama, Gemma included."""

from collections.abc import Callable

from lit_llm.checkpoint.tables.rows import (
    ATTENTION,
    GATED_MLP,
    LLAMA,
    POST_NORMS,
    PRE_NORMS,
    QK_NORMS,
    QKV,
    Table,
    fused,
    model_table,
)
from lit_llm.model.config import Config

_PHI3: Table = {
    "self_attn.qkv_proj": fused(*QKV),
    "self_attn.o_proj": "attn.o",
    "mlp.gate_up_proj": fused("mlp.gate", "mlp.up"),
    "mlp.down_proj": "mlp.down",
}
_GEMMA2 = ATTENTION | GATED_MLP | POST_NORMS | {"input_layernorm": "norm_1", "pre_feedforward_layernorm": "norm_2"}


def _stablelm(config: Config) -> Table:
    rows = dict(LLAMA)
    if config.parallel_residual:
        del rows["post_attention_layernorm"]
    if config.qk_norm:
        rows |= {f"self_attn.{x}_layernorm.norms.{{}}": f"attn.{x}_norm.{{}}" for x in "qk"}
    return model_table(rows)


DENSE: dict[str, Callable[[Config], Table]] = {
    "llama": lambda config: model_table(LLAMA),
    "mistral": lambda config: model_table(LLAMA),
    "qwen2": lambda config: model_table(LLAMA),
    "qwen3": lambda config: model_table(LLAMA | QK_NORMS),
    "gemma": lambda config: model_table(LLAMA),
    "gemma2": lambda config: model_table(_GEMMA2),
    "gemma3_text": lambda config: model_table(_GEMMA2 | QK_NORMS),
    "phi3": lambda config: model_table(PRE_NORMS | _PHI3),
    "olmo": lambda config: model_table(ATTENTION | GATED_MLP, norm=None),
    "olmo2": lambda config: model_table(ATTENTION | QK_NORMS | GATED_MLP | POST_NORMS),
    "smollm3": lambda config: model_table(LLAMA),
    "stablelm": _stablelm,
    "helium": lambda config: model_table(LLAMA),
}
