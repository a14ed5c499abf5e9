"""Checkpoints of Lit-GPT (2023) and litgpt: `lit_model.pth` beside `lit_config.json` or `model_config.yaml`.

Their layout is read only to convert it. Names of tensors are in `weights.py`; here is what their configuration means.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lit_llm.checkpoint.read import read_tensors
from lit_llm.checkpoint.tensor_names import TABLES, from_lit_gpt, parts_of_family, parts_of_model
from lit_llm.files import read_json_object
from lit_llm.model.config import LIT_CONFIG, LIT_GPT_WEIGHTS, Config
from lit_llm.model.config_json import Keys
from lit_llm.model.gpt import GPT

KEPT_CONFIG = "lit_gpt_config.json"  # their lit_config.json, once ours has taken its name
_YAML_CONFIG = "model_config.yaml"

_NEUTRAL = frozenset(("name", "org", "hf_config", "padding_multiple", "vocab_size"))
_ACTIVATION = {"none": "gelu", "tanh": "gelu_tanh"}


def config_file(folder: Path) -> Path | None:
    """Their configuration if the folder holds weights of theirs, else None."""
    if (folder / LIT_GPT_WEIGHTS).is_file():
        for name in (KEPT_CONFIG, LIT_CONFIG, _YAML_CONFIG):
            path = folder / name
            # A file of ours has the same name as theirs of 2023, but names a family.
            if path.is_file() and not (name == LIT_CONFIG and "model_type" in read_json_object(path)):
                return path
    return None


def read_lit_gpt(folder: Path, path: Path) -> tuple[Config, list[tuple[str, Callable[[], Tensor]]]]:
    """Config, and our names with readers of the weights, from a folder of theirs with the configuration `path`.

    Raises:
        ValueError: if a field of the configuration is not understood, or a tensor has no place.
    """
    tensors = [(name, read) for name, read in read_tensors([folder / LIT_GPT_WEIGHTS])]
    by_name = dict(tensors)
    head, embedding = (by_name.get(name) for name in ("lm_head.weight", "transformer.wte.weight"))
    # They always store both, and the head of a model that ties them is a copy.
    tied = head is not None and embedding is not None and torch.equal(head(), embedding())
    family = None
    if (folder / "config.json").is_file():
        family = read_json_object(folder / "config.json").get("model_type")
    try:
        config = _config(_values(path), tied, family)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return config, list(from_lit_gpt(config, tensors))


def _values(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        return read_json_object(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError("must hold a mapping of options")
    return values


def _config(values: dict[str, Any], tied: bool, family: str | None) -> Config:
    """Our Config for theirs. `family` is taken for model_type if its parts are those of the model."""
    k = Keys(values)
    name = k.get("name", "")
    norm, mlp = (k.get(f"{part}_class_name", None) or k.get(f"_{part}_class", old) for part, old in _CLASSES.items())
    if norm not in ("LayerNorm", "RMSNorm"):
        raise ValueError(f"norm_class_name = {norm!r} is not supported; supported: LayerNorm, RMSNorm")
    if mlp not in ("GptNeoxMLP", "LLaMAMLP", "GemmaMLP", "LLaMAMoE"):
        raise ValueError(f"mlp_class_name = {mlp!r} is not supported; supported: GptNeoxMLP, LLaMAMLP, GemmaMLP, LLaMAMoE")
    for feature in ("latent_attention", "n_shared_expert", "n_expert_groups", "first_k_dense_replace"):
        k.only(feature, None)
    k.only("rope_interleave", False)
    k.only("routed_scaling_factor", 1.0)
    k.unused("norm_topk_prob", "n_topk_groups", "n_topk_scores_per_group")  # the first is not read, the others with groups
    approximate = k.only("gelu_approximate", *_ACTIVATION)
    n_embd, n_head, n_layer = k.size("n_embd", 4096), k.size("n_head", 32), k.size("n_layer", 16)
    head_size = k.size("head_size", n_embd // n_head)
    if mlp == "LLaMAMLP" and "intermediate_size" not in values:
        raise ValueError("intermediate_size is missing")
    intermediate_size = k.size("intermediate_size", 4 * n_embd)
    bias, multiple = k.get("bias", True), values.get("padding_multiple", 512)
    fields: dict[str, Any] = dict(
        vocab_size=k.size("padded_vocab_size", -(-values.get("vocab_size", 50254) // multiple) * multiple),
        block_size=k.size("block_size", 4096),
        n_layer=n_layer,
        n_head=n_head,
        n_query_groups=k.size("n_query_groups", n_head),
        n_embd=n_embd,
        head_size=head_size,
        intermediate_size=intermediate_size,
        **_norm(k, norm, name),
        mlp="plain" if mlp == "GptNeoxMLP" else "gated",
        activation="silu" if mlp in ("LLaMAMLP", "LLaMAMoE") else _ACTIVATION[approximate],
        attn_bias=k.get("attn_bias", False) or bias,
        attn_out_bias=bias,
        mlp_bias=bias,
        lm_head_bias=k.get("lm_head_bias", False),
        attention_softcap=k.get("attention_logit_softcapping", None),
        logit_softcap=k.get("final_logit_softcapping", None),
        scale_embeddings=k.get("scale_embeddings", False),
        tie_embeddings=tied,
        **_residuals(k),
        **_positions(k, n_layer, head_size),
    )
    if (scalar := k.get("attention_scores_scalar", None)) is not None:
        fields["attention_scale"] = scalar**-0.5
    n_expert, n_chosen = k.get("n_expert", 0), k.get("n_expert_per_token", 0)
    expert_size = k.size("moe_intermediate_size", intermediate_size)
    if mlp == "LLaMAMoE":
        fields |= {"n_expert": n_expert, "n_expert_per_token": n_chosen, "expert_size": expert_size}
    if unknown := sorted(set(k.unread()) - _NEUTRAL):
        raise ValueError(f"fields that are not understood: {', '.join(unknown)}")
    return Config(model_type=_family(fields, family), **fields)


_CLASSES = {"norm": "LayerNorm", "mlp": "GptNeoxMLP"}


def _norm(k: Keys, kind: str, name: str) -> dict[str, Any]:
    """Two of their norms depend on the name of the model."""
    qk = {"default": "head", "olmo2": "row"}[k.only("norm_qk_type", "default", "olmo2")] if k.get("norm_qk", False) else None
    k.unused("norm_qk_type")
    fields = {"norm_eps": k.get("norm_eps", 1e-5), "qk_norm": qk}
    if kind == "RMSNorm":
        return fields | {"norm": "rms_plus_one" if "Gemma" in name else "rms"}
    return fields | ({"norm": "layer_fixed"} if "OLMo" in name else {"norm": "layer", "norm_bias": True})


def _residuals(k: Keys) -> dict[str, Any]:
    """How attention and MLP hang on the residual stream."""
    before, after = k.get("norm_1", True), k.get("post_attention_norm", False)
    parallel, shared = k.get("parallel_residual", True), k.get("shared_attention_norm", False)
    if k.get("norm_2", True) != before or k.get("post_mlp_norm", False) != after:
        raise ValueError("norm_1 and norm_2, or post_attention_norm and post_mlp_norm, differ: that is not supported")
    if parallel and (after or not before):
        raise ValueError("parallel_residual = True with norm_1 = False or post_attention_norm = True is not supported")
    if shared and not parallel:
        raise ValueError("shared_attention_norm = True without parallel_residual is not supported")
    return {"pre_norm": before, "post_norm": after, "parallel_residual": parallel, "shared_attention_norm": shared}


def _positions(k: Keys, n_layer: int, head_size: int) -> dict[str, Any]:
    """RoPE and the sliding window."""
    window, slides = k.get("sliding_window_size", None), k.get("sliding_window_indices", None)
    placing = k.only("sliding_window_layer_placing", 1, 2, "all", "interleaved")
    if slides is None:
        slides = [placing in (1, "all") or i % 2 == 0 for i in range(n_layer)]
    sliding = [i for i in range(n_layer) if slides[i]]
    fields: dict[str, Any] = {}
    if window is not None and sliding:
        fields = {"sliding_window": window, "sliding_layers": None if len(sliding) == n_layer else sliding}
    ratio = k.get("rope_condense_ratio", None) or k.get("condense_ratio", 1)
    k.unused("condense_ratio")
    scaling, local = k.get("rope_adjustments", None), k.get("rope_local_base_freq", None)
    uses_local = k.get("rope_indices", None)
    if ratio != 1 and (scaling or local):
        raise ValueError("rope_condense_ratio together with rope_adjustments or rope_local_base_freq is not supported")
    if ratio != 1:
        fields["rope_scaling"] = {"rope_type": "linear", "factor": float(ratio)}
    if scaling:
        fields["rope_scaling"] = _rope_adjustments(scaling)
    if local is not None:
        if not sliding or window is None or [i for i in range(n_layer) if uses_local is None or uses_local[i]] != sliding:
            raise ValueError("rope_indices must be those of the layers with a sliding window")
        fields["local_rope_theta"] = float(local)
    rotary_size = int(k.get("rotary_percentage", 0.25) * head_size)
    return fields | {"rotary_size": rotary_size, "rope_theta": float(k.get("rope_base", 10000))}


def _rope_adjustments(given: dict[str, Any]) -> dict[str, Any]:
    if given.keys() == {"factor"}:
        return {"rope_type": "linear", "factor": float(given["factor"])}
    if given.keys() != {"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"}:
        raise ValueError(f"rope_adjustments with {', '.join(sorted(given))} are not supported")
    others = {name: value for name, value in given.items() if name != "original_max_seq_len"}
    return {"rope_type": "llama3", **others, "original_max_position_embeddings": given["original_max_seq_len"]}


def _family(fields: dict[str, Any], wanted: str | None) -> str:
    """`wanted` if that family has the parts of this model, else the first that has; it decides the names on export."""
    for family in sorted(TABLES, key=lambda family: family != wanted):
        config = Config(model_type=family, **fields)
        with torch.device("meta"):
            parts = parts_of_model(GPT(config).state_dict())
        if parts == parts_of_family(config):
            return family
    raise ValueError("no family of lit_llm is built from these parts (norms, MLP, residuals)")
