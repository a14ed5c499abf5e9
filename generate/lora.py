"""Answer an instruction with a model finetuned with LoRA. Prints the answer, and nothing else, on stdout."""

from lit_llm.args.generate import LoRAGenerateArgs
from lit_llm.cli import run


def main(args: LoRAGenerateArgs) -> None:
    from lit_llm.generation.answer_prompts import answer

    answer(args)


if __name__ == "__main__":
    run(main)
