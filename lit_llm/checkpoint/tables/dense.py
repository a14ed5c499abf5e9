"""Names in families like Llama, Gemma included."""

from collections.abc import Callable

from lit_llm.checkpoint.tables.rows import (
    ATTENTION,
    GATED_MLP,
    LLAMA,
    PLAIN_MLP,
    POST_NORMS,
    PRE_NORMS,
    QK_NORMS,
    QKV,
    Table,
    fused,
    model_table,
)
from lit_llm.model.config import Config

_GATE_UP: Table = {"mlp.gate_up_proj": fused("mlp.gate", "mlp.up"), "mlp.down_proj": "mlp.down"}
_PHI3: Table = {"self_attn.qkv_proj": fused(*QKV), "self_attn.o_proj": "attn.o"} | _GATE_UP
_VAULTGEMMA_NORMS: Table = {"input_layernorm": "norm_1", "pre_feedforward_layernorm": "norm_2"}
_GEMMA2 = ATTENTION | GATED_MLP | POST_NORMS | _VAULTGEMMA_NORMS
_COHERE: Table = {"input_layernorm": "norm_1"} | ATTENTION | GATED_MLP
_GLM4_POST_NORMS: Table = {"post_self_attn_layernorm": "post_attn_norm", "post_mlp_layernorm": "post_mlp_norm"}
HUNYUAN_QK_NORMS: Table = {"self_attn.query_layernorm": "attn.q_norm", "self_attn.key_layernorm": "attn.k_norm"}
_APERTUS_NORMS: Table = {"attention_layernorm": "norm_1", "feedforward_layernorm": "norm_2"}


def _xielu(config: Config) -> Table:
    names = ("alpha_p", "alpha_n", "beta", "eps") if config.activation == "xielu" else ()
    return {f"mlp.act_fn.{name}": f"mlp.activation.{name}" for name in names}


def _stablelm(config: Config) -> Table:
    rows = dict(LLAMA)
    if config.parallel_residual:
        del rows["post_attention_layernorm"]
    if config.qk_norm:
        rows |= {f"self_attn.{x}_layernorm.norms.{{}}": f"attn.{x}_norm.{{}}" for x in "qk"}
    return model_table(rows)


def _hyperclovax(config: Config) -> Table:
    post_norms: Table = {"post_norm1": "post_attn_norm", "post_norm2": "post_mlp_norm"}
    return model_table(LLAMA | (post_norms if config.post_norm else {}))


DENSE: dict[str, Callable[[Config], Table]] = {
    "llama": lambda config: model_table(LLAMA),
    "mistral": lambda config: model_table(LLAMA),
    "qwen2": lambda config: model_table(LLAMA),
    "qwen3": lambda config: model_table(LLAMA | QK_NORMS),
    "gemma": lambda config: model_table(LLAMA),
    "gemma2": lambda config: model_table(_GEMMA2),
    "vaultgemma": lambda config: model_table(ATTENTION | GATED_MLP | _VAULTGEMMA_NORMS),
    "gemma3_text": lambda config: model_table(_GEMMA2 | QK_NORMS),
    "phi3": lambda config: model_table(PRE_NORMS | _PHI3),
    "olmo": lambda config: model_table(ATTENTION | GATED_MLP, norm=None),
    "olmo2": lambda config: model_table(ATTENTION | QK_NORMS | GATED_MLP | POST_NORMS),
    "smollm3": lambda config: model_table(LLAMA),
    "stablelm": _stablelm,
    "helium": lambda config: model_table(LLAMA),
    "olmo3": lambda config: model_table(ATTENTION | QK_NORMS | GATED_MLP | POST_NORMS),
    "ministral": lambda config: model_table(LLAMA),
    "ministral3": lambda config: model_table(LLAMA),
    "granite": lambda config: model_table(LLAMA),
    "hyperclovax": _hyperclovax,
    "cohere": lambda config: model_table(_COHERE | (QK_NORMS if config.qk_norm else {})),
    "cohere2": lambda config: model_table(_COHERE),
    "glm": lambda config: model_table(PRE_NORMS | ATTENTION | _GATE_UP),
    "glm4": lambda config: model_table(PRE_NORMS | _GLM4_POST_NORMS | ATTENTION | _GATE_UP),
    "seed_oss": lambda config: model_table(LLAMA),
    "ernie4_5": lambda config: model_table(LLAMA),
    "exaone4": lambda config: model_table(ATTENTION | QK_NORMS | GATED_MLP | POST_NORMS),
    "hunyuan_v1_dense": lambda config: model_table(LLAMA | HUNYUAN_QK_NORMS),
    "nemotron": lambda config: model_table(PRE_NORMS | ATTENTION | PLAIN_MLP),
    "arcee": lambda config: model_table(PRE_NORMS | ATTENTION | PLAIN_MLP),
    "apertus": lambda config: model_table(_APERTUS_NORMS | ATTENTION | QK_NORMS | PLAIN_MLP | _xielu(config)),
    "nanochat": lambda config: model_table(ATTENTION | {"mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down"}, norm=None),
    "jais2": lambda config: model_table(PRE_NORMS | ATTENTION | PLAIN_MLP),
    "cwm": lambda config: model_table(LLAMA),
    "internlm3": lambda config: model_table(LLAMA),
    "iquestcoder": lambda config: model_table(LLAMA),
}
