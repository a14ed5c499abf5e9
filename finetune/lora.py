"""Finetune a model with LoRA, or QLoRA with --quantize. Without flags: the embedded demo."""

from lit_llm.args.finetune import LoRAFinetuneArgs
from lit_llm.cli import run


def main(args: LoRAFinetuneArgs) -> None:
    from lit_llm.training.finetune import finetune

    finetune(args)


if __name__ == "__main__":
    run(main)
