"""Check that a server keeps the protocol of the NeurIPS 2023 LLM Efficiency Challenge. Prints every rule on stdout."""

from lit_llm.args.evaluate import ChallengeCheckArgs
from lit_llm.cli import run


def main(args: ChallengeCheckArgs) -> None:
    from lit_llm.evaluation.challenge_check import check_url

    check_url(args)


if __name__ == "__main__":
    run(main)
