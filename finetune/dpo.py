"""Align a model with preference pairs: direct preference optimization with LoRA. Without flags: the embedded demo."""

from lit_llm.args.finetune import DPOFinetuneArgs
from lit_llm.cli import run


def main(args: DPOFinetuneArgs) -> None:
    from lit_llm.training.finetune import finetune

    finetune(args)


if __name__ == "__main__":
    run(main)
