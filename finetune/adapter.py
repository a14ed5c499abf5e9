"""Finetune a model with LLaMA-Adapter. Without flags: the embedded demo."""

from lit_llm.args.finetune import AdapterFinetuneArgs
from lit_llm.cli import run


def main(args: AdapterFinetuneArgs) -> None:
    from lit_llm.training.finetune import finetune

    finetune(args)


if __name__ == "__main__":
    run(main)
