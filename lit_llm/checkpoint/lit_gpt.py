"""Checkpoints of Lit-GPT (2023) and litgpt: `lit_model.pth` with `lit_config.json` or `model_config.yaml`.

Their layout is read only to convert it. `tensor_names.py` has their names of tensors; this file translates their configuration.
"""

from pathlib import Path
from typing import Any

import torch
import yaml

from lit_llm.checkpoint.read import read_tensors, same_values
from lit_llm.checkpoint.tables import TABLES
from lit_llm.checkpoint.tensor_names import Names, Reader, lit_gpt_names, parts_of_family, parts_of_model
from lit_llm.errors import CheckpointError
from lit_llm.files import read_json_object
from lit_llm.model.config import LIT_CONFIG, LIT_GPT_WEIGHTS, Config
from lit_llm.model.config_json import Keys, positive
from lit_llm.model.gpt import GPT
from lit_llm.schema import shown

KEPT_CONFIG = "lit_gpt_config.json"  # their lit_config.json, once ours has taken its name
_YAML_CONFIG = "model_config.yaml"

_NORMS = ("LayerNorm", "RMSNorm")
# Their MLP class -> our `mlp`, and its activation; None: `gelu_approximate` decides.
_MLPS = {
    "GptNeoxMLP": ("plain", None),
    "LLaMAMLP": ("gated", "silu"),
    "GemmaMLP": ("gated", None),
    "LLaMAMoE": ("gated", "silu"),
}
_ACTIVATION = {"none": "gelu", "tanh": "gelu_tanh"}
_NEUTRAL = frozenset(("name", "org", "hf_config", "padding_multiple", "vocab_size"))


def config_file(folder: Path) -> Path | None:
    """Return their configuration if the folder has weights of theirs, else None."""
    if (folder / LIT_GPT_WEIGHTS).is_file():
        for name in (KEPT_CONFIG, LIT_CONFIG, _YAML_CONFIG):
            path = folder / name
            # A file of ours has the same name as theirs of 2023, but names a family.
            if path.is_file() and not (name == LIT_CONFIG and "model_type" in read_json_object(path)):
                return path
    return None


def read_lit_gpt(folder: Path, path: Path) -> tuple[Names, list[tuple[str, Reader]]]:
    """Return names, which hold the config, and tensors of a folder of theirs with the configuration `path`.

    Raises:
        CheckpointError: if a field of the configuration is not understood.
    """
    tensors = list(read_tensors([folder / LIT_GPT_WEIGHTS]))
    by_name = dict(tensors)
    head, embedding = (by_name.get(name) for name in ("lm_head.weight", "transformer.wte.weight"))
    # They store both, and the head of a model that ties them is a copy.
    tied = head is None or embedding is None or same_values(head(), embedding())
    family = None
    if (folder / "config.json").is_file():
        family = read_json_object(folder / "config.json").get("model_type")
    try:
        config = _config(Keys(_values(path)), tied, family)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return lit_gpt_names(config), tensors


def _values(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        return read_json_object(path)
    try:
        values = yaml.safe_load(path.read_bytes())
    except RecursionError as error:
        raise CheckpointError("nested too deeply. Download the checkpoint again") from error
    except (yaml.YAMLError, ValueError) as error:
        raise CheckpointError(f"not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise CheckpointError("must hold a mapping of options")
    return values


def _config(k: Keys, tied: bool, family: str | None) -> Config:
    """Return our Config for theirs. `family` becomes `model_type` if its parts are those of the model."""
    name = str(k.get("name", ""))
    norm, mlp = _class(k, "norm", _NORMS), _class(k, "mlp", tuple(_MLPS))
    _refuse_unsupported(k)
    sizes = _sizes(k, mlp)
    fields: dict[str, Any] = {
        **sizes,
        **_norm(k, norm, name),
        **_mlp(k, mlp, sizes["intermediate_size"]),
        **_attention(k),
        **_residuals(k),
        **_positions(k, sizes["n_layer"], sizes["head_size"]),
        "lm_head_bias": k.flag("lm_head_bias", False),
        "logit_softcap": k.number("final_logit_softcapping", None),
        "scale_embeddings": k.flag("scale_embeddings", False),
        "tie_embeddings": tied,
    }
    if unknown := sorted(set(k.unread()) - _NEUTRAL):
        raise ValueError(f"fields that are not understood: {', '.join(name[:60] for name in unknown)}")
    return Config(model_type=_family(fields, family), **fields)


def _class(k: Keys, part: str, known: tuple[str, ...]) -> str:
    """Return their class of a part: `norm_class_name`, or `_norm_class` in 2023; by default the first one known."""
    found = k.get(f"{part}_class_name", None) or k.get(f"_{part}_class", known[0])
    if found not in known:
        raise ValueError(f"{part}_class_name = {shown(found)} is not supported; supported: {', '.join(known)}")
    return found


def _refuse_unsupported(k: Keys) -> None:
    for feature in ("latent_attention", "n_shared_expert", "n_expert_groups", "first_k_dense_replace"):
        k.only(feature, None)
    k.only("rope_interleave", False)
    k.only("routed_scaling_factor", 1.0)
    k.unused("norm_topk_prob", "n_topk_groups", "n_topk_scores_per_group")  # the first is not read, the others with groups


def _sizes(k: Keys, mlp: str) -> dict[str, int]:
    n_embd, n_head = k.size("n_embd", 4096), k.size("n_head", 32)
    if mlp == "LLaMAMLP" and k.get("intermediate_size", None) is None:
        raise ValueError("intermediate_size is missing")
    multiple = k.size("padding_multiple", 512)
    return {
        "vocab_size": k.size("padded_vocab_size", -(-k.size("vocab_size", 50254) // multiple) * multiple),
        "block_size": k.size("block_size", 4096),
        "n_layer": k.layers("n_layer", 16),
        "n_head": n_head,
        "n_query_groups": k.size("n_query_groups", n_head),
        "n_embd": n_embd,
        "head_size": k.size("head_size", n_embd // n_head),
        "intermediate_size": k.size("intermediate_size", 4 * n_embd),
    }


def _mlp(k: Keys, kind: str, intermediate_size: int) -> dict[str, Any]:
    mlp, activation = _MLPS[kind]
    approximate = k.only("gelu_approximate", *_ACTIVATION)
    fields = {"mlp": mlp, "activation": activation or _ACTIVATION[approximate], "mlp_bias": k.flag("bias", True)}
    experts = {
        "n_expert": k.count("n_expert", 0),
        "n_expert_per_token": k.count("n_expert_per_token", 0),
        "expert_size": k.size("moe_intermediate_size", intermediate_size),
    }
    return fields | experts if kind == "LLaMAMoE" else fields


def _attention(k: Keys) -> dict[str, Any]:
    bias, scalar = k.flag("bias", True), k.number("attention_scores_scalar", None)
    return {
        "attn_bias": k.flag("attn_bias", False) or bias,
        "attn_out_bias": bias,
        "attention_softcap": k.number("attention_logit_softcapping", None),
        "attention_scale": None if scalar is None else scalar**-0.5,
    }


def _norm(k: Keys, kind: str, name: str) -> dict[str, Any]:
    """Their Gemma and OLMo norms have no class or field of their own: the name of the model decides."""
    qk = {"default": "head", "olmo2": "row"}[k.only("norm_qk_type", "default", "olmo2")] if k.flag("norm_qk", False) else None
    k.unused("norm_qk_type")
    fields = {"norm_eps": k.number("norm_eps", 1e-5), "qk_norm": qk}
    if kind == "RMSNorm":
        return fields | {"norm": "rms_plus_one" if "Gemma" in name else "rms"}
    return fields | ({"norm": "layer_fixed"} if "OLMo" in name else {"norm": "layer", "norm_bias": True})


def _residuals(k: Keys) -> dict[str, Any]:
    """Norms before and after attention and MLP, and whether both read the same residual stream."""
    before, after = k.flag("norm_1", True), k.flag("post_attention_norm", False)
    parallel, shared = k.flag("parallel_residual", True), k.flag("shared_attention_norm", False)
    if k.flag("norm_2", True) != before or k.flag("post_mlp_norm", False) != after:
        raise ValueError("norm_1 and norm_2, or post_attention_norm and post_mlp_norm, differ: that is not supported")
    if parallel and (after or not before):
        raise ValueError("parallel_residual = True with norm_1 = False or post_attention_norm = True is not supported")
    if shared and not parallel:
        raise ValueError("shared_attention_norm = True without parallel_residual is not supported")
    return {"pre_norm": before, "post_norm": after, "parallel_residual": parallel, "shared_attention_norm": shared}


def _positions(k: Keys, n_layer: int, head_size: int) -> dict[str, Any]:
    """RoPE and the sliding window."""
    window, slides = k.optional_size("sliding_window_size", None), k.per_layer("sliding_window_indices", n_layer)
    placing = k.only("sliding_window_layer_placing", 1, 2, "all", "interleaved")
    if slides is None:
        slides = [placing in (1, "all") or i % 2 == 0 for i in range(n_layer)]
    sliding = [i for i in range(n_layer) if slides[i]]
    fields: dict[str, Any] = {}
    if window is not None and sliding:
        fields = {"sliding_window": window, "sliding_layers": None if len(sliding) == n_layer else sliding}
    ratio = k.number("rope_condense_ratio", None) or k.number("condense_ratio", 1)
    k.unused("condense_ratio")
    scaling, local = k.object("rope_adjustments"), k.number("rope_local_base_freq", None)
    uses_local = k.per_layer("rope_indices", n_layer)
    if ratio != 1 and (scaling or local):
        raise ValueError("rope_condense_ratio together with rope_adjustments or rope_local_base_freq is not supported")
    if ratio != 1:
        fields["rope_scaling"] = {"rope_type": "linear", "factor": ratio}
    if scaling:
        fields["rope_scaling"] = _rope_adjustments(scaling)
    if local is not None:
        if not sliding or window is None or [i for i in range(n_layer) if uses_local is None or uses_local[i]] != sliding:
            raise ValueError("rope_indices must be those of the layers with a sliding window")
        fields["local_rope_theta"] = local
    rotary_size = int(min(k.number("rotary_percentage", 0.25) or 0, 2) * head_size)
    return fields | {"rotary_size": rotary_size, "rope_theta": k.number("rope_base", 10000)}


def _rope_adjustments(given: dict[str, Any]) -> dict[str, Any]:
    if given.keys() == {"factor"}:
        return {"rope_type": "linear", "factor": positive("rope_adjustments.factor", given["factor"])}
    if given.keys() != {"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"}:
        found = ", ".join(name[:60] for name in sorted(given))
        raise ValueError(f"rope_adjustments with {found[:300]} are not supported")
    others = {name: value for name, value in given.items() if name != "original_max_seq_len"}
    return {"rope_type": "llama3", **others, "original_max_position_embeddings": given["original_max_seq_len"]}


def _family(fields: dict[str, Any], wanted: str | None) -> str:
    """Return `wanted` if that family has the parts of this model, else the first that has. It decides the names on export."""
    fields = fields | {"n_layer": min(fields["n_layer"], 2)}  # the parts are the same in all layers
    for family in sorted(TABLES, key=lambda family: family != wanted):
        config = Config(model_type=family, **fields)
        with torch.device("meta"):
            parts = parts_of_model(GPT(config).state_dict())
        if parts == parts_of_family(config):
            return family
    raise ValueError("no family of lit_llm is built from these parts (norms, MLP, residuals)")
