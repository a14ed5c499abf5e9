"""Prompt styles by name: from an instruction and its input to the text that the model answers."""

from collections.abc import Callable


def alpaca(instruction: str, input: str = "") -> str:
    """Stanford Alpaca's two templates (https://github.com/tatsu-lab/stanford_alpaca, train.py)."""
    if input:
        return (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        )
    return (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n### Response:\n"
    )


def plain(instruction: str, input: str = "") -> str:
    """The instruction and the input as they are, a line each."""
    return f"{instruction}\n{input}\n" if input else f"{instruction}\n"


STYLES: dict[str, Callable[[str, str], str]] = {"alpaca": alpaca, "plain": plain}


def prompt_style(name: str) -> Callable[[str, str], str]:
    """Raises ValueError, with the known names, if there is no such style."""
    if name not in STYLES:
        raise ValueError(f"prompt style {name!r} is not known; known styles: {', '.join(STYLES)}")
    return STYLES[name]
