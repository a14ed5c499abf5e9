"""Names in families with plain MLPs."""

from collections.abc import Callable

from lit_llm.checkpoint.tables.rows import ATTENTION, PRE_NORMS, QKV, Table, fused, in_layers, model_table
from lit_llm.model.config import Config

_NEOX_MLP: Table = {"mlp.dense_h_to_4h": "mlp.up", "mlp.dense_4h_to_h": "mlp.down"}
_NEOX_ATTENTION: Table = {
    "attention.query_key_value": fused(*QKV, blocks="n_query_groups"),
    "attention.dense": "attn.o",
}
_GPT_NEOX: Table = {
    "gpt_neox.embed_in": "wte", "gpt_neox.final_layer_norm": "norm", "embed_out": "lm_head",
} | in_layers("gpt_neox.layers", PRE_NORMS | _NEOX_ATTENTION | _NEOX_MLP)  # fmt: skip


def _gpt2(rows: Table) -> Table:
    ends: Table = {
        "transformer.wte": "wte", "transformer.wpe": "wpe", "transformer.ln_f": "norm", "lm_head": "lm_head",
    }  # fmt: skip
    return ends | in_layers("transformer.h", {"ln_1": "norm_1", "ln_2": "norm_2", **rows})


_GPT2 = _gpt2({
    "attn.c_attn": fused(*QKV, transposed=True),
    "attn.c_proj": fused("attn.o", transposed=True),
    "mlp.c_fc": fused("mlp.up", transposed=True),
    "mlp.c_proj": fused("mlp.down", transposed=True),
})  # fmt: skip
_GPT_BIGCODE = _gpt2({
    "attn.c_attn": fused(*QKV, blocks="n_query_groups"), "attn.c_proj": "attn.o",
    "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down",
})  # fmt: skip


_OPENAI_GPT: Table = {"transformer.tokens_embed": "wte", "transformer.positions_embed": "wpe"} | {
    theirs: ours for theirs, ours in _GPT2.items() if ours not in ("wte", "wpe", "norm")
}  # fmt: skip
_GPT_NEO = _gpt2({
    **{f"attn.attention.{part}_proj": f"attn.{part}" for part in "qkv"},
    "attn.attention.out_proj": "attn.o", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down",
})  # fmt: skip
_GPTJ_MLP: Table = {"mlp.fc_in": "mlp.up", "mlp.fc_out": "mlp.down"}
_GPTJ_ENDS: Table = {"transformer.wte": "wte", "transformer.ln_f": "norm", "lm_head": "lm_head"}
_GPTJ = _GPTJ_ENDS | in_layers("transformer.h", {
    "ln_1": "norm_1", **{f"attn.{part}_proj": f"attn.{part}" for part in "qkv"}, "attn.out_proj": "attn.o", **_GPTJ_MLP,
})  # fmt: skip
_CODEGEN = _GPTJ_ENDS | in_layers("transformer.h", {
    "ln_1": "norm_1", "attn.qkv_proj": fused("attn.q", "attn.v", "attn.k", blocks=4), "attn.out_proj": "attn.o", **_GPTJ_MLP,
})  # fmt: skip
_FAIRSEQ: Table = {
    **{f"self_attn.{part}_proj": f"attn.{part}" for part in "qkv"}, "self_attn.out_proj": "attn.o",
    "self_attn_layer_norm": "norm_1", "fc1": "mlp.up", "fc2": "mlp.down", "final_layer_norm": "norm_2",
}  # fmt: skip
_BIOGPT: Table = {
    "biogpt.embed_tokens": "wte", "biogpt.embed_positions": "wpe", "biogpt.layer_norm": "norm",
    "output_projection": "lm_head",
} | in_layers("biogpt.layers", _FAIRSEQ)  # fmt: skip
_MPT: Table = {
    "transformer.wte": "wte", "transformer.norm_f": "norm", "lm_head": "lm_head",
} | in_layers("transformer.blocks", {
    "norm_1": "norm_1", "attn.Wqkv": fused(*QKV), "attn.out_proj": "attn.o", "norm_2": "norm_2",
    "ffn.up_proj": "mlp.up", "ffn.down_proj": "mlp.down",
})  # fmt: skip


def _opt(config: Config) -> Table:
    parts = {"embed_tokens": "wte", "embed_positions": "wpe"}
    if config.embedding_size is not None:
        parts |= {"project_in": "project_in", "project_out": "project_out"}
    rows = dict(_FAIRSEQ)
    if config.norm == "layer_fixed":
        del rows["self_attn_layer_norm"], rows["final_layer_norm"]
    elif config.final_norm:
        parts["final_layer_norm"] = "norm"
    ends: Table = {f"model.decoder.{theirs}": ours for theirs, ours in parts.items()}
    return ends | {"lm_head": "lm_head"} | in_layers("model.decoder.layers", rows)


def _phi(config: Config) -> Table:
    rows: Table = {f"self_attn.{part}_proj": f"attn.{part}" for part in "qkv"}
    rows |= {"self_attn.dense": "attn.o", "input_layernorm": "norm_1", "mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down"}
    if config.qk_norm:
        rows |= {f"self_attn.{x}_layernorm": f"attn.{x}_norm" for x in "qk"}
    return model_table(rows, norm="final_layernorm")


def _falcon(config: Config) -> Table:
    if not config.parallel_residual:
        norms = PRE_NORMS
    elif config.shared_attention_norm:
        norms: Table = {"input_layernorm": "norm_1"}
    else:
        norms = {"ln_attn": "norm_1", "ln_mlp": "norm_2"}
    attention = {f"self_{theirs}": ours for theirs, ours in _NEOX_ATTENTION.items()}
    ends: Table = {"transformer.word_embeddings": "wte", "transformer.ln_f": "norm", "lm_head": "lm_head"}
    if config.embedding_norm:
        ends["transformer.word_embeddings_layernorm"] = "wte_norm"
    return ends | in_layers("transformer.h", norms | attention | _NEOX_MLP)


def _persimmon(config: Config) -> Table:
    rows: Table = {
        "self_attn.query_key_value": fused(*QKV, blocks="n_query_groups"),
        "self_attn.dense": "attn.o",
        **PRE_NORMS,
        **_NEOX_MLP,
    }
    if config.qk_norm:
        rows |= {f"self_attn.{x}_layernorm": f"attn.{x}_norm" for x in "qk"}
    return model_table(rows, norm="final_layernorm")


OLDER: dict[str, Callable[[Config], Table]] = {
    "phi": _phi,
    "gpt_neox": lambda config: _GPT_NEOX,
    "falcon": _falcon,
    "RefinedWebModel": _falcon,
    "RefinedWeb": _falcon,
    "bloom": _falcon,
    "mpt": lambda config: _MPT,
    "opt": _opt,
    "biogpt": lambda config: _BIOGPT,
    "gpt2": lambda config: _GPT2,
    "openai-gpt": lambda config: _OPENAI_GPT,
    "gpt_neo": lambda config: _GPT_NEO,
    "gptj": lambda config: _GPTJ,
    "codegen": lambda config: _CODEGEN,
    "persimmon": _persimmon,
    "gpt_bigcode": lambda config: _GPT_BIGCODE,
    "starcoder2": lambda config: model_table(PRE_NORMS | ATTENTION | {"mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}),
}
