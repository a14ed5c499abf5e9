"""Perplexity of a text file per token, word and byte. Prints JSON on stdout."""

from lit_llm.args.evaluate import PerplexityArgs
from lit_llm.cli import run


def main(args: PerplexityArgs) -> None:
    from lit_llm.evaluation.perplexity import evaluate_file

    evaluate_file(args)


if __name__ == "__main__":
    run(main)
