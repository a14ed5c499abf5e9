"""Tiny multimodal models of transformers whose text parts are compared: arguments of their configurations."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

_TEXT: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
_QWEN_VISION: dict[str, Any] = {
    "depth": 1, "hidden_size": 32, "embed_dim": 16, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32,
    "intermediate_size": 16, "fullatt_block_indexes": [0], "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
}  # fmt: skip
_DELTA: dict[str, Any] = {
    "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6,
    "linear_value_head_dim": 5, "full_attention_interval": 2, "rms_norm_eps": 0.1,
}  # fmt: skip
_MROPE = {"rope_type": "default", "rope_theta": 2e4, "mrope_section": [1, 1, 2]}


def _case(text: dict[str, Any], vision: dict[str, Any] | str, **more: Any) -> dict[str, Any]:
    vision = vision if isinstance(vision, dict) else {**_VISION, "model_type": vision}
    return {"text_config": {**_TEXT, **text}, "vision_config": vision, **more}


TEXT_PART_CASES: dict[str, dict[str, Any]] = {
    "gemma3": _case({"model_type": "gemma3_text", "sliding_window": 6, "sliding_window_pattern": 2, "head_dim": 8},
                    "siglip_vision_model", mm_tokens_per_image=4),
    "mistral3": _case({"model_type": "mistral", "sliding_window": None}, "pixtral", tie_word_embeddings=False),
    "llava": _case({"model_type": "llama"}, "clip_vision_model"),
    "llava_next": _case({"model_type": "mistral", "sliding_window": 6}, "clip_vision_model"),
    "llava_onevision": _case({"model_type": "qwen2"}, "siglip_vision_model"),
    "internvl": _case({"model_type": "qwen3", "head_dim": 16},
                      {**_VISION, "model_type": "internvl_vision", "image_size": [16, 16], "patch_size": [8, 8]}),
    "qwen2_vl": _case({"rope_parameters": _MROPE}, _QWEN_VISION),
    "qwen2_5_vl": _case({"rope_parameters": _MROPE, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
                        _QWEN_VISION, tie_word_embeddings=True),
    "qwen3_vl": _case({"rope_parameters": {**_MROPE, "mrope_interleaved": True}, "head_dim": 8}, _QWEN_VISION),
    "qwen3_5": _case({**_DELTA, "rope_parameters": {**_MROPE, "mrope_interleaved": True}}, _QWEN_VISION),
    "qwen3_5_moe": _case(
        {**_DELTA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
         "shared_expert_intermediate_size": 20}, _QWEN_VISION, tie_word_embeddings=True),
    "llama4": _case(
        {"model_type": "llama4_text", "moe_layers": [], "head_dim": 8, "intermediate_size_mlp": 48},
        {**_VISION, "model_type": "llama4_vision_model", "intermediate_size": 64, "vision_output_dim": 32,
         "projector_input_dim": 32, "projector_output_dim": 32}),
    "idefics3": _case({"model_type": "llama"}, _VISION, scale_factor=1),
    "smolvlm": _case({"model_type": "llama"}, _VISION, scale_factor=1, tie_word_embeddings=True),
}  # fmt: skip


def make_multimodal(model_type: str) -> PreTrainedModel:
    """A random model in eval mode whose parameters, norms included, are random."""
    torch.manual_seed(0)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes = TEXT_PART_CASES[model_type]
    config = AutoConfig.for_model(model_type, **sizes | {"text_config": {**sizes["text_config"], **tokens}})
    config._attn_implementation = "eager"
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and parameter.dim() < 2 else 0.0, 0.15)
    return model
