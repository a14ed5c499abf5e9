"""Finetune a model with LLaMA-Adapter. Without flags: the embedded demo."""

from lit_llm.args.finetune import AdapterFinetuneArgs
from lit_llm.cli import run


def main(args: AdapterFinetuneArgs) -> None:
    from lit_llm.finetune import finetune
    from lit_llm.methods.adapter import Adapter

    finetune(args, Adapter(**vars(args.adapter)))


if __name__ == "__main__":
    run(main)
