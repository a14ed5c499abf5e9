"""The families of models: a row of `FAMILIES` per `model_type` of `config.json`."""

from lit_llm.model.families.dense import DENSE
from lit_llm.model.families.experts import EXPERTS
from lit_llm.model.families.gemma import GEMMA
from lit_llm.model.families.hybrid import HYBRID
from lit_llm.model.families.latent import LATENT
from lit_llm.model.families.older import OLDER
from lit_llm.model.families.text_parts import TEXT_PARTS, TextPart, text_part

__all__ = ["FAMILIES", "TEXT_PARTS", "TextPart", "text_part"]

FAMILIES = DENSE | GEMMA | EXPERTS | LATENT | HYBRID | OLDER
