"""Generate from Python: `from lit_llm.generate import generate`."""

from lit_llm.generation.generate import check_context, encode_prompt, generate

__all__ = ["check_context", "encode_prompt", "generate"]
