"""The weights of a run, trained and frozen, by kind."""

from collections import Counter

from torch import nn

from lit_llm.model.gpt import GPT
from lit_llm.model.quantized_linear import QuantizedLinear

_KINDS = (
    (("wte", "wpe", "project_in", "project_out"), "embeddings"), (("lm_head",), "head"), (("attn",), "attention"),
    (("router", "mlp"), "mlp"),
    (("delta",), "delta nets"), (("conv",), "convolutions"),
)  # fmt: skip


def summary(model: GPT) -> str:
    """Return a table with a row for each kind of weight. A quantized weight counts with its unquantized number of elements."""
    trained: Counter[str] = Counter()
    frozen: Counter[str] = Counter()
    held: dict[str, set[str]] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:  # a head that is tied to the embedding
                continue
            seen.add(id(parameter))
            kind, n, dtype = _kind(path, module), parameter.numel(), str(parameter.dtype).removeprefix("torch.")
            if isinstance(module, QuantizedLinear) and leaf != "bias":
                n = module.in_features * module.out_features if leaf == "weight" else 0
                dtype = getattr(module, "quant_type", "int8")
            (trained if parameter.requires_grad else frozen)[kind] += n
            held.setdefault(kind, set()).add(dtype)
    rows = [(kind, f"{trained[kind]:,}", f"{frozen[kind]:,}", ", ".join(sorted(held[kind]))) for kind in held]
    rows.append(("total", f"{trained.total():,}", f"{frozen.total():,}", ""))
    lines = [f"{'weights':<18}{'trained':>16}{'frozen':>18}  held as"]
    lines += [f"{kind:<18}{t:>16}{f:>18}  {dtypes}".rstrip() for kind, t, f, dtypes in rows]
    return "\n".join([f"{len(model.h)} layers on {model.wte.weight.device}", *lines])


def _kind(path: str, module: nn.Module) -> str:
    if type(module).__name__ in ("Norm", "HeadNorms"):
        return "norms"
    if hasattr(module, "shown_as"):  # a module that a method added
        return str(module.shown_as)
    parts = path.split(".")
    return next(kind for names, kind in _KINDS if set(names) & set(parts))
