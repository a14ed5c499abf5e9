"""Rules that read the maths of each family from its `config.json`: a row of `FAMILIES` per `model_type`.

A row differs from Llama's: other keys or names of keys, other defaults of missing keys, other fixed fields of `Config`. Values
that depend on more than one key come from a function.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from lit_llm.errors import CheckpointError
from lit_llm.model.config_json import Fields, Keys, check_size, positive, read_keys, rope_fields, rope_parameters, window_fields
from lit_llm.schema import shown


@dataclass(frozen=True)
class Family:
    """How to turn the `config.json` of a family into fields of `Config`. Steps apply in the order of these fields."""

    published: str
    """Checkpoints, for tutorials/models.md."""
    keys: Fields = field(default_factory=dict)
    """Keys that the family has in addition to Llama's, or with another default (upstream's), by their common name."""
    spelled: dict[str, str | None] = field(default_factory=dict)
    """Own names of keys by their common name. None: the family does not have the key, its default always holds."""
    fixed: Fields = field(default_factory=dict)
    """Fields of `Config` that do not depend on keys."""
    only: Fields = field(default_factory=dict)
    """Keys with the one value that is supported."""
    unused: tuple[str, ...] = ()
    """Keys that upstream writes and does not read."""
    rope: Callable[[Keys], Fields] | None = rope_parameters
    """Returns the parameters of RoPE. None: the family has no RoPE."""
    more: Callable[[Keys, Fields], Fields] = lambda k, fields: {}
    """Returns fields that depend on several keys, given the other fields."""

    def fields(self, hf: Fields) -> tuple[Fields, list[str]]:
        """Return the fields of `Config`, and the keys of `hf` that the family does not have.

        Raises:
            CheckpointError: if a key has a value that is not supported.
        """
        k = Keys(hf, self.spelled)
        fields = read_keys(k, _LLAMA_KEYS | self.keys)
        if self.rope is not None:
            fields |= rope_fields(k, fields["head_size"], fields["block_size"], self.rope(k), self.keys)
        for name, value in self.only.items():
            k.only(name, value)
        k.unused(*self.unused)
        fields |= self.fixed
        return fields | self.more(k, fields), k.unread()


# Keys that all families have, under this name or another, with Llama's defaults.
_LLAMA_KEYS: Fields = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,  # as many as query heads
    "head_dim": None,  # hidden_size / num_attention_heads
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
}
_LAYER_NORM: Fields = {"norm": "layer", "norm_bias": True}
_PLAIN_LAYER_NORM: Fields = {**_LAYER_NORM, "mlp": "plain"}
_ALL_BIASES: Fields = {"attn_bias": True, "attn_out_bias": True, "mlp_bias": True}


def _llama(k: Keys, fields: Fields) -> Fields:
    if (ratio := k.number("rope_condense_ratio", 1)) in (1, None):
        return {}
    if fields["rope_scaling"] not in (None, {"rope_type": "linear", "factor": ratio}):
        raise CheckpointError("rope_condense_ratio and rope_scaling contradict each other")
    # LongChat's name for linear scaling.
    length = check_size(
        "max_position_embeddings times rope_condense_ratio", int(k.size("max_position_embeddings", 2048) * ratio)
    )
    return {"rope_scaling": {"rope_type": "linear", "factor": ratio}, "block_size": max(length, fields["block_size"])}


def _smollm3(k: Keys, fields: Fields) -> Fields:
    """Every `no_rope_layer_interval`-th layer has no RoPE; these are the layers that may have a sliding window."""
    n_layer, interval = fields["n_layer"], k.size("no_rope_layer_interval", 4)
    has_rope = k.per_layer("no_rope_layers", n_layer) or [int((i + 1) % interval != 0) for i in range(n_layer)]  # 1: with RoPE
    window = _used_window(k, None)
    without = [i for i, has in enumerate(has_rope) if not has]
    slides = [window is not None and not has for has in has_rope]
    return {**window_fields(k, n_layer, window, slides), "no_rope_layers": without or None}


def _used_window(k: Keys, default: int | None) -> int | None:
    window = k.optional_size("sliding_window", default)
    return window if k.flag("use_sliding_window", False) else None


def _qwen(k: Keys, fields: Fields) -> Fields:
    """The first `max_window_layers` attend to everything, the later ones to the window."""
    window, full = _used_window(k, 4096), k.count("max_window_layers", 28)
    n_layer = fields["n_layer"]
    return window_fields(k, n_layer, window, [window is not None and i >= full for i in range(n_layer)])


def _qwen3_moe(k: Keys, fields: Fields) -> Fields:
    step, only_mlp = k.size("decoder_sparse_step", 1), k.integers("mlp_only_layers")
    dense = [i for i in range(fields["n_layer"]) if i in only_mlp or (i + 1) % step]
    return {
        "n_expert": k.optional_size("num_local_experts", None) or k.size("num_experts", 128),
        "expert_size": k.size("moe_intermediate_size", 768),
        "normalize_expert_weights": k.flag("norm_topk_prob", False),
        "dense_layers": dense or None,
        "sliding_window": _used_window(k, 4096),
    }


def _gemma2(k: Keys, fields: Fields) -> Fields:
    slides = [i % 2 == 0 for i in range(fields["n_layer"])]
    return {**window_fields(k, len(slides), k.optional_size("sliding_window", 4096), slides), **_query_scale(k)}


def _query_scale(k: Keys) -> Fields:
    return {"attention_scale": positive("query_pre_attn_scalar", k.get("query_pre_attn_scalar", 256)) ** -0.5}


def _gemma3_kinds(k: Keys) -> Fields:
    """`rope_parameters` by kind of layer."""
    kinds = k.object("rope_parameters")
    if unknown := sorted(kinds.keys() - {"full_attention", "sliding_attention"}):
        raise CheckpointError(f"rope_parameters has fields that are not supported: {', '.join(unknown)}")
    if wrong := [kind for kind, value in kinds.items() if not isinstance(value, dict)]:
        raise CheckpointError(f"rope_parameters.{wrong[0]} must be an object, found {shown(kinds[wrong[0]])}")
    return kinds


def _gemma3_rope(k: Keys) -> Fields:
    return {**_gemma3_kinds(k).get("full_attention", {}), **k.object("rope_scaling")}


def _gemma3(k: Keys, fields: Fields) -> Fields:
    """Layers with a sliding window have a RoPE of their own."""
    given = _gemma3_kinds(k).get("sliding_attention", {})
    local = {name: value for name, value in given.items() if value is not None}
    theta = positive("rope_local_base_freq", local.pop("rope_theta", k.get("rope_local_base_freq", 10000.0)))
    if local.pop("rope_type", "default") != "default" or local:
        raise CheckpointError(f"scaled RoPE in layers with a sliding window is not supported: {shown(given)}")
    pattern = k.size("sliding_window_pattern", 6)
    slides = [(i + 1) % pattern != 0 for i in range(fields["n_layer"])]
    window = window_fields(k, len(slides), k.optional_size("sliding_window", 4096), slides)
    return {**window, **_query_scale(k), "local_rope_theta": theta, "block_size": k.size("max_position_embeddings", 131072)}


def _phi3_rope(k: Keys) -> Fields:
    """The first releases called `longrope` `su` or `yarn`."""
    parameters = rope_parameters(k)
    old = {key: "longrope" for key in ("type", "rope_type") if parameters.get(key) in ("su", "yarn")}
    return parameters | old


def _stablelm(k: Keys, fields: Fields) -> Fields:
    parallel = k.flag("use_parallel_residual", False)
    return {
        "attn_bias": k.flag("use_qkv_bias", False),
        "qk_norm": "each_head" if k.flag("qk_layernorm", False) else None,
        "parallel_residual": parallel,
        "shared_attention_norm": parallel,
    }


def _falcon(k: Keys, fields: Fields) -> Fields:
    _refuse_alibi(k)
    new, multi_query = k.flag("new_decoder_architecture", False), k.flag("multi_query", True)
    n_head, n_kv_heads = fields["n_head"], k.optional_size("num_kv_heads", None)
    parallel, n_norms = k.flag("parallel_attn", True) or new, k.size("num_ln_in_parallel_attn", 2 if new else 1)
    return {
        "n_query_groups": (n_kv_heads or n_head) if new else 1 if multi_query else n_head,
        "parallel_residual": parallel,
        "shared_attention_norm": parallel and n_norms == 1,
    }


def _refined_web(k: Keys, fields: Fields) -> Fields:
    """Falcon 7B (`RefinedWebModel`) and 40B (`RefinedWeb`) as first published, before transformers had them."""
    _refuse_alibi(k)
    is_40b, multi_query, n_head = k.get("model_type", None) == "RefinedWeb", k.flag("multi_query", False), fields["n_head"]
    parallel = is_40b or k.flag("parallel_attn", False)
    return {
        "n_query_groups": k.size("n_head_kv", n_head) if is_40b else 1 if multi_query else n_head,
        "parallel_residual": parallel,
        "shared_attention_norm": parallel and not is_40b,
    }


def _refuse_alibi(k: Keys) -> None:
    if k.flag("alibi", False):
        raise CheckpointError(
            "Falcon with ALiBi positions (falcon-rw) is not supported; the RoPE models (7B, 11B, 40B, 180B) are"
        )


_GEMMA: Fields = {
    "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    "attention_bias": False, "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
_GEMMA2 = _GEMMA | {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
}  # fmt: skip
_GEMMA_FIXED: Fields = {"norm": "rms_plus_one", "scale_embeddings": True}
_GEMMA_ONLY: Fields = {"use_bidirectional_attention": False}

_FALCON: Fields = {
    "spelled": {
        "intermediate_size": "ffn_hidden_size", "hidden_act": "activation", "rms_norm_eps": "layer_norm_epsilon",
        "attention_bias": "bias", "mlp_bias": "bias", "head_dim": None, "num_key_value_heads": None,
    },
    "fixed": _PLAIN_LAYER_NORM,
}  # fmt: skip
_FALCON_KEYS: Fields = {
    "vocab_size": 65024, "hidden_size": 4544, "num_attention_heads": 71, "intermediate_size": None, "hidden_act": "gelu",
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
_REFINED_WEB = {
    **_FALCON,
    "keys": _FALCON_KEYS | {"vocab_size": 250880, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8},
    "spelled": {**_FALCON["spelled"], "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    "only": {"apply_residual_connection_post_layernorm": False},
    "more": _refined_web,
}

_GPT2: Fields = {
    "spelled": {
        "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions", "intermediate_size": "n_inner", "hidden_act": "activation_function",
        "rms_norm_eps": "layer_norm_epsilon", "head_dim": None, "num_key_value_heads": None,
    },
    "fixed": {**_PLAIN_LAYER_NORM, **_ALL_BIASES, "learned_positions": True},
    "rope": None,
}  # fmt: skip
_GPT2_KEYS: Fields = {
    "vocab_size": 50257, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": None,
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip
_GPT2_ONLY: Fields = {"scale_attn_weights": True, "add_cross_attention": False}

_MISTRAL: Fields = {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072}
_QWEN: Fields = {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768}
_OLMO: Fields = {"vocab_size": 50304, "attention_bias": False}
_LAYER_NORM_EPS: dict[str, str | None] = {"rms_norm_eps": "layer_norm_eps"}

FAMILIES = {
    "llama": Family(
        "Llama 1 to 3.3, Code Llama, TinyLlama, OpenLLaMA, Vicuna, LongChat, Nous-Hermes, Platypus, SmolLM 1 and 2",
        {"attention_bias": False, "mlp_bias": False},
        more=_llama,
    ),
    "mistral": Family("Mistral 7B v0.1 to v0.3, Mistral Nemo, Zephyr 7B", _MISTRAL | {"sliding_window": 4096}),
    "mixtral": Family(
        "Mixtral 8x7B and 8x22B",
        _MISTRAL
        | {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2},
        only={"router_jitter_noise": 0.0},
        more=lambda k, fields: {"expert_size": fields["intermediate_size"]},
    ),
    "qwen2": Family(
        "Qwen 1.5, 2 and 2.5 except their mixtures of experts, Qwen2.5-Coder, Qwen2.5-Math",
        _QWEN,
        fixed={"attn_bias": True},
        only={"use_mrope": False},
        more=_qwen,
    ),
    "qwen3": Family(
        "Qwen3 0.6B to 32B", _QWEN | {"head_dim": 128, "attention_bias": False}, fixed={"qk_norm": "head"}, more=_qwen
    ),
    "qwen3_moe": Family(
        "Qwen3 30B-A3B and 235B-A22B, Qwen3-Coder 30B-A3B",
        _QWEN
        | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_key_value_heads": 4,
           "attention_bias": False, "num_experts_per_tok": 8},
        fixed={"qk_norm": "head"},
        unused=("max_window_layers",),
        more=_qwen3_moe,
    ),
    "gemma": Family(
        "Gemma 2B and 7B, CodeGemma",
        _GEMMA,
        fixed=_GEMMA_FIXED,
        only=_GEMMA_ONLY,
        unused=("hidden_activation",),
        # The first release wrote `gelu` and meant its approximation.
        more=lambda k, fields: {"activation": "gelu_tanh"} if fields["activation"] == "gelu" else {},
    ),
    "gemma2": Family(
        "Gemma 2 2B, 9B and 27B",
        _GEMMA2 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        spelled={"hidden_act": "hidden_activation"},
        fixed={**_GEMMA_FIXED, "post_norm": True},
        only=_GEMMA_ONLY,
        unused=("hidden_act",),
        more=_gemma2,
    ),
    "gemma3_text": Family(
        "Gemma 3 270M and 1B",
        _GEMMA2 | {"vocab_size": 262208, "max_position_embeddings": 131072, "rope_theta": 1e6, "final_logit_softcapping": None},
        spelled={"hidden_act": "hidden_activation"},
        fixed={**_GEMMA_FIXED, "post_norm": True, "qk_norm": "head"},
        only={**_GEMMA_ONLY, "attn_logit_softcapping": None},
        unused=("hidden_act", "_sliding_window_pattern"),
        rope=_gemma3_rope,
        more=_gemma3,
    ),
    "phi": Family(
        "Phi-1, Phi-1.5 and Phi-2",
        {"vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
         "partial_rotary_factor": 0.5, "hidden_act": "gelu_new", "rms_norm_eps": 1e-5},
        spelled=_LAYER_NORM_EPS,
        fixed={**_PLAIN_LAYER_NORM, **_ALL_BIASES, "lm_head_bias": True, "parallel_residual": True,
               "shared_attention_norm": True},
        more=lambda k, fields: {"qk_norm": "head" if k.flag("qk_layernorm", False) else None},
    ),
    "phi3": Family(
        "Phi-3 and Phi-3.5 mini, Phi-3 medium, Phi-4, Phi-4-mini",
        {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
         "rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096, "sliding_window": None},
        only={"attention_bias": False},
        rope=_phi3_rope,
    ),
    "olmo": Family(
        "OLMo 1B and 7B",
        _OLMO | {"clip_qkv": None, "rms_norm_eps": 1e-5},
        spelled={"rms_norm_eps": None},
        fixed={"norm": "layer_fixed"},
    ),
    "olmo2": Family(
        "OLMo 2 1B, 7B, 13B and 32B",
        _OLMO | {"rms_norm_eps": 1e-5},
        fixed={"pre_norm": False, "post_norm": True, "qk_norm": "row"},
    ),
    "smollm3": Family(
        "SmolLM3 3B: some layers have no RoPE (https://arxiv.org/abs/2501.18795)",
        {"vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
         "num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2e6, "tie_word_embeddings": True,
         "attention_bias": False, "mlp_bias": False},
        more=_smollm3,
    ),
    "stablelm": Family(
        "StableLM 3B-4E1T, StableLM Zephyr 3B, StableLM 2 1.6B and 12B, Stable Code 3B",
        {"vocab_size": 50304, "hidden_size": 2560, "intermediate_size": 6912, "num_key_value_heads": 32,
         "max_position_embeddings": 4096, "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-5},
        spelled=_LAYER_NORM_EPS,
        fixed=_LAYER_NORM,
        more=_stablelm,
    ),
    "gpt_neox": Family(
        "Pythia, GPT-NeoX 20B, Dolly v2, RedPajama-INCITE, StableLM alpha, StableCode alpha",
        {"vocab_size": 50432, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44,
         "num_attention_heads": 64, "partial_rotary_factor": 0.25, "attention_bias": True, "use_parallel_residual": True,
         "hidden_act": "gelu", "rms_norm_eps": 1e-5},
        spelled={**_LAYER_NORM_EPS, "rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
        fixed={**_PLAIN_LAYER_NORM, "mlp_bias": True},
        more=lambda k, fields: {"n_query_groups": fields["n_head"]},
    ),
    "falcon": Family("Falcon 7B, 11B, 40B and 180B", _FALCON_KEYS, **_FALCON, more=_falcon),
    "RefinedWebModel": Family("Falcon 7B as first published, before transformers had it", **_REFINED_WEB),
    "RefinedWeb": Family("Falcon 40B as first published, before transformers had it", **_REFINED_WEB),
    "gpt2": Family(
        "GPT-2 and DistilGPT2",
        _GPT2_KEYS | {"hidden_act": "gelu_new"},
        **_GPT2,
        only={**_GPT2_ONLY, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False},
    ),
    "gpt_bigcode": Family(
        "SantaCoder, StarCoder, StarCoderBase, TinyStarCoder",
        _GPT2_KEYS | {"hidden_act": "gelu_pytorch_tanh"},
        **_GPT2,
        only=_GPT2_ONLY,
        unused=("num_key_value_heads",),  # follows from multi_query
        more=lambda k, fields: {"n_query_groups": 1} if k.flag("multi_query", True) else {},
    ),
    "starcoder2": Family(
        "StarCoder2 3B, 7B and 15B",
        {"vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30,
         "num_attention_heads": 24, "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": True,
         "attention_bias": True, "mlp_bias": True, "sliding_window": None, "hidden_act": "gelu_pytorch_tanh",
         "rms_norm_eps": 1e-5},
        spelled={"rms_norm_eps": "norm_epsilon", "attention_bias": "use_bias", "mlp_bias": "use_bias"},
        fixed=_PLAIN_LAYER_NORM,
        unused=("residual_dropout", "embedding_dropout"),
    ),
}  # fmt: skip
