"""Families with mixtures of experts."""

from lit_llm.model.config_json import Fields, Keys
from lit_llm.model.families.family import MISTRAL, QWEN, Family, used_window


def _qwen3_moe(k: Keys, fields: Fields) -> Fields:
    step, only_mlp = k.size("decoder_sparse_step", 1), k.integers("mlp_only_layers")
    dense = [i for i in range(fields["n_layer"]) if i in only_mlp or (i + 1) % step]
    return {
        "n_expert": k.optional_size("num_local_experts", None) or k.size("num_experts", 128),
        "expert_size": k.size("moe_intermediate_size", 768),
        "normalize_expert_weights": k.flag("norm_topk_prob", False),
        "dense_layers": dense or None,
        "sliding_window": used_window(k, 4096),
    }


EXPERTS: dict[str, Family] = {
    "mixtral": Family(
        "Mixtral 8x7B and 8x22B",
        MISTRAL
        | {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2},
        only={"router_jitter_noise": 0.0},
        more=lambda k, fields: {"expert_size": fields["intermediate_size"]},
    ),
    "qwen3_moe": Family(
        "Qwen3 30B-A3B and 235B-A22B, Qwen3-Coder 30B-A3B",
        QWEN
        | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_key_value_heads": 4,
           "attention_bias": False, "num_experts_per_tok": 8},
        fixed={"qk_norm": "head"},
        unused=("max_window_layers",),
        more=_qwen3_moe,
    ),
}  # fmt: skip
