"""Answer an instruction with a model finetuned in full, or merged. Prints the answer, and nothing else, on stdout."""

from lit_llm.args.generate import FullGenerateArgs
from lit_llm.cli import run


def main(args: FullGenerateArgs) -> None:
    from lit_llm.generation.answer_prompts import answer_finetuned

    answer_finetuned(args)


if __name__ == "__main__":
    run(main)
