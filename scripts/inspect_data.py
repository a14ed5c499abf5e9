"""Show the training examples with the trained tokens in colour, and counts."""

from lit_llm.args.data import InspectDataArgs
from lit_llm.cli import run


def main(args: InspectDataArgs) -> None:
    from lit_llm.training.preflight import inspect_data

    inspect_data(args)


if __name__ == "__main__":
    run(main)
