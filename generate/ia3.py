"""Answer an instruction with a model finetuned with IA3. Prints the answer, and nothing else, on stdout."""

from lit_llm.args.generate import AdapterGenerateArgs
from lit_llm.cli import run


def main(args: AdapterGenerateArgs) -> None:
    from lit_llm.generation.answer_prompts import answer

    answer(args)


if __name__ == "__main__":
    run(main)
