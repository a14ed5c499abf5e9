"""Continue a raw prompt, without a prompt style. Prints the prompt and its continuation, and nothing else, on stdout."""

from lit_llm.args.generate import GenerateArgs
from lit_llm.cli import run


def main(args: GenerateArgs) -> None:
    from lit_llm.generation.answer_prompts import continue_prompts

    continue_prompts(args)


if __name__ == "__main__":
    run(main)
