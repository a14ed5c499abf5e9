"""Convert JSON, parquet or Arrow to a data folder: instructions, conversations, preference pairs or plain text."""

from lit_llm.args.data import PrepareJsonArgs
from lit_llm.cli import run


def main(args: PrepareJsonArgs) -> None:
    from lit_llm.data.prepare import prepare_table

    prepare_table(args)


if __name__ == "__main__":
    run(main)
