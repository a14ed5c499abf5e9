"""One table of names per family, read in both directions between Hugging Face's layout and ours."""

from lit_llm.checkpoint.tables.dense import DENSE
from lit_llm.checkpoint.tables.experts import EXPERTS
from lit_llm.checkpoint.tables.hybrid import HYBRID
from lit_llm.checkpoint.tables.latent import LATENT
from lit_llm.checkpoint.tables.older import OLDER
from lit_llm.checkpoint.tables.rows import QKV, Table, fused, in_layers
from lit_llm.model.config import Config

TABLES = DENSE | EXPERTS | LATENT | HYBRID | OLDER


def lit_gpt_table(config: Config) -> Table:
    """Return the names of Lit-GPT and litgpt, for all families."""
    mlp = {"proj": "down", **({"fc": "up"} if config.mlp == "plain" else {"fc_1": "gate", "fc_2": "up"})}
    rows: Table = {
        "norm_1": "norm_1",
        "attn.attn": fused(*QKV, blocks="n_query_groups"),
        "attn.qkv": fused(*QKV),  # since litgpt 0.5
        "attn.norm_q": "attn.q_norm",
        "attn.norm_k": "attn.k_norm",
        "attn.proj": "attn.o",
        "post_attention_norm": "post_attn_norm",
        "norm_2": "norm_2",
        "post_mlp_norm": "post_mlp_norm",
        "mlp.gate": "mlp.router",
        **{f"mlp.{theirs}": f"mlp.{ours}" for theirs, ours in mlp.items()},
        **{f"mlp.experts.{{}}.{theirs}": f"mlp.experts.{{}}.{ours}" for theirs, ours in mlp.items()},
    }
    return {"transformer.wte": "wte", "transformer.ln_f": "norm", "lm_head": "lm_head"} | in_layers("transformer.h", rows)
