"""Finetune a model with IA3: learned scales of keys, values and MLP activations. Without flags: the embedded demo."""

from lit_llm.args.finetune import IA3FinetuneArgs
from lit_llm.cli import run


def main(args: IA3FinetuneArgs) -> None:
    from lit_llm.training.finetune import finetune

    finetune(args)


if __name__ == "__main__":
    run(main)
