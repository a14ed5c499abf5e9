"""Evaluate a model on tasks of EleutherAI's harness, or your own. Prints the harness's table on stdout."""

from lit_llm.args.evaluate import HarnessArgs
from lit_llm.cli import run


def main(args: HarnessArgs) -> None:
    from lit_llm.evaluation.harness import evaluate

    evaluate(args)


if __name__ == "__main__":
    run(main)
