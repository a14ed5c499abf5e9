"""Text models inside of multimodal ones: a row per `model_type` that has a `text_config`, opened as the text model alone.

The network is that of another family, found by the `model_type` of the text part; files name its tensors with another prefix.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_llm.errors import CheckpointError
from lit_llm.model.config_json import Fields
from lit_llm.schema import shown

# Keys of a multimodal config.json that are not of its text part, where both are in one object.
_OUTER_KEYS = frozenset(
    """architectures image_token_id text_config video_token_id vision_config vision_end_token_id vision_start_token_id
    vision_token_id""".split()
)
# Keys that generation reads, next to the text part or in it.
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class TextPart:
    """How to find the text model in a multimodal checkpoint."""

    published: str
    """Checkpoints, for tutorials/models.md."""
    family: str
    """`model_type` of the text part, where its config does not name one."""
    names: Mapping[str, str]
    """Prefixes of its tensors in files, and those of the family. The first is that of transformers' module."""
    omitted: tuple[str, ...]
    """Prefixes of the other tensors."""
    tied: bool = False
    """Default of `tie_word_embeddings`, which is next to the text part."""
    defaults: Fields = field(default_factory=dict)
    """Defaults of keys of the text part, where they differ from the family's."""
    families: Mapping[str, str] = field(default_factory=dict)
    """Own `model_type` of the text part: the family that computes the same for text."""
    flat: bool = False
    """Old files have the keys of the text part in the outer object."""

    def config_json(self, hf: Fields) -> Fields:
        """Return the `config.json` of the text model alone.

        Text has the same position on all axes of a multimodal RoPE (https://arxiv.org/abs/2409.12191, section 2.1), which then
        is the common one.

        Raises:
            CheckpointError: if there is no text part.
        """
        given = hf.get("text_config")
        if given is None and self.flat:
            given = {key: value for key, value in hf.items() if key not in _OUTER_KEYS} | {"model_type": self.family}
        if not isinstance(given, dict):
            raise CheckpointError(f"text_config must be an object, found {shown(given)}")
        text = self.defaults | {key: value for key, value in given.items() if key not in self.defaults or value is not None}
        family = text.get("model_type") or self.family
        text["model_type"] = self.families.get(family, family) if isinstance(family, str) else family
        for key in ("rope_scaling", "rope_parameters"):
            if isinstance(rope := text.get(key), dict):
                text[key] = {name: _one_axis(value) for name, value in rope.items() if not name.startswith("mrope_")}
        text["tie_word_embeddings"] = hf.get("tie_word_embeddings", self.tied) or text.get("tie_word_embeddings", False)
        return text | {key: hf[key] for key in (*_TOKENS, "dtype", "torch_dtype") if hf.get(key) is not None}

    def name(self, stored: str) -> str | None:
        """Return the family's name of a tensor in a file; None if it is not of the text model."""
        if stored.startswith(self.omitted):
            return None
        for theirs, family in self.names.items():
            if stored.startswith(theirs):
                return family + stored.removeprefix(theirs)
        return stored

    def stored_names(self, name: str) -> list[str]:
        """Return the names that files may have for a tensor, given the family's; the first is that of transformers' module."""
        found = [theirs + name.removeprefix(family) for theirs, family in self.names.items() if name.startswith(family)]
        return [*found, name]


def _one_axis(value: Any) -> Any:
    """The type of RoPE with several axes is the common one."""
    return "default" if value == "mrope" else value


def text_part(hf: Fields) -> TextPart | None:
    """Return the row of a `config.json`. None: it is not of a multimodal model."""
    model_type = hf.get("model_type")
    return TEXT_PARTS.get(model_type) if isinstance(model_type, str) else None


_LLAVA: dict[str, Any] = {
    "names": {
        "model.language_model.": "model.", "language_model.model.": "model.", "language_model.lm_head.": "lm_head.",
    },
    "omitted": tuple(
        prefix + part for part in ("vision_tower.", "multi_modal_projector.", "image_newline") for prefix in ("", "model.")
    ),
}  # fmt: skip
_QWEN_VL: dict[str, Any] = {"names": {"model.language_model.": "model."}, "omitted": ("visual.", "model.visual.")}
_QWEN2_VL: dict[str, Any] = {
    **_QWEN_VL,
    "family": "qwen2",
    "flat": True,
    "defaults": {
        "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "max_window_layers": 80, "rope_theta": 1e6,
    },
}  # fmt: skip
_IDEFICS: dict[str, Any] = {
    "family": "llama",
    "names": {"model.text_model.": "model."},
    "omitted": ("model.vision_model.", "model.connector."),
}

TEXT_PARTS: dict[str, TextPart] = {
    "gemma3": TextPart("Gemma 3 4B, 12B and 27B, MedGemma", "gemma3_text", tied=True, **_LLAVA),
    "mistral3": TextPart("Mistral Small 3.1 and 3.2", "mistral", tied=True, **_LLAVA),
    "llava": TextPart("LLaVA 1.5, Pixtral 12B", "llama", **_LLAVA),
    "llava_next": TextPart("LLaVA 1.6", "llama", **_LLAVA),
    "llava_onevision": TextPart("LLaVA-OneVision", "qwen2", **_LLAVA),
    "internvl": TextPart("InternVL3", "qwen2", tied=True, **_LLAVA),
    "qwen2_vl": TextPart("Qwen2-VL", families={"qwen2_vl_text": "qwen2"}, **_QWEN2_VL),
    "qwen2_5_vl": TextPart("Qwen2.5-VL", families={"qwen2_5_vl_text": "qwen2"}, **_QWEN2_VL),
    "qwen3_vl": TextPart(
        "Qwen3-VL 2B to 32B",
        "qwen3",
        families={"qwen3_vl_text": "qwen3"},
        defaults={"max_position_embeddings": 128000, "rope_theta": 5e5},
        **_QWEN_VL,
    ),
    "qwen3_5": TextPart("Qwen3.5 0.8B to 27B", "qwen3_5_text", **_QWEN_VL),
    "qwen3_5_moe": TextPart("Qwen3.5 35B-A3B, 122B-A10B and 397B-A17B", "qwen3_5_moe_text", **_QWEN_VL),
    "llama4": TextPart(
        "Llama 4 Scout and Maverick",
        "llama4_text",
        {"language_model.model.": "model.", "language_model.lm_head.": "lm_head."},
        omitted=("vision_model.", "multi_modal_projector."),
    ),
    "idefics3": TextPart("Idefics3 8B, Granite-Docling, SmolDocling", **_IDEFICS),
    "smolvlm": TextPart("SmolVLM and SmolVLM2", **_IDEFICS),
}
