"""Full finetuning, or of some blocks only: the model's own weights train."""

from typing import Any

from lit_llm.errors import OptionError
from lit_llm.methods.inject import hold_in_float32
from lit_llm.methods.method import Method
from lit_llm.model.gpt import GPT


class Full(Method):
    """Train all parameters, or those under the names in `trainable`, as in `lm_head,h.30,h.31,norm`."""

    name = "full"
    trains_base = True

    def __init__(self, trainable: str | list[str] = "all") -> None:
        names = trainable if isinstance(trainable, list) else trainable.strip("[]").split(",")
        self.prefixes = [name.strip() for name in names]

    def attach(self, model: GPT) -> None:
        """Make the weights that train float32. Autocast makes the half-precision copies that the products use.

        Raises:
            ValueError: if a name matches no parameter; the message lists what exists.
        """
        names = [name for name, _ in model.named_parameters()]
        for prefix in self.prefixes:
            if prefix != "all" and not any(_under(name, prefix) for name in names):
                exist = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
                raise OptionError(
                    f"`full.trainable` {prefix!r} matches no parameter; there are {exist}, and h.0 to h.{len(model.h) - 1}"
                )
        if not self.in_parts:
            hold_in_float32(model, self.trainable)

    def trainable(self, name: str) -> bool:
        return any(prefix == "all" or _under(name, prefix) for prefix in self.prefixes)

    def arguments(self) -> dict[str, Any]:
        return {"trainable": self.prefixes}


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")
