"""Finetune all weights of a model, or of some blocks. Without flags: the embedded demo."""

from lit_llm.args.finetune import FullFinetuneArgs
from lit_llm.cli import run


def main(args: FullFinetuneArgs) -> None:
    from lit_llm.training.finetune import finetune

    finetune(args)


if __name__ == "__main__":
    run(main)
