"""Finetune a model with LoRA, or QLoRA with --quantize. Without flags: the embedded demo."""

from lit_llm.args.finetune import LoRAFinetuneArgs
from lit_llm.cli import run


def main(args: LoRAFinetuneArgs) -> None:
    from lit_llm.methods.lora import LoRA
    from lit_llm.training.finetune import finetune

    finetune(args, LoRA(**vars(args.lora)))


if __name__ == "__main__":
    run(main)
