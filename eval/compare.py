"""Compare models on the same rows: exact match, ROUGE-L, BLEU and loss, with intervals. Prints a markdown table."""

from lit_llm.args.evaluate import CompareArgs
from lit_llm.cli import run


def main(args: CompareArgs) -> None:
    from lit_llm.evaluation.compare import compare_models

    compare_models(args)


if __name__ == "__main__":
    run(main)
