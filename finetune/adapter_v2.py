"""Finetune a model with LLaMA-Adapter V2. Without flags: the embedded demo."""

from lit_llm.args.finetune import AdapterV2FinetuneArgs
from lit_llm.cli import run


def main(args: AdapterV2FinetuneArgs) -> None:
    from lit_llm.training.finetune import finetune

    finetune(args)


if __name__ == "__main__":
    run(main)
