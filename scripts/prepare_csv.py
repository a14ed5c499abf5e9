"""Convert CSV to a data folder."""

from lit_llm.args.data import PrepareCsvArgs
from lit_llm.cli import run


def main(args: PrepareCsvArgs) -> None:
    from lit_llm.data.prepare import prepare_table

    prepare_table(args)


if __name__ == "__main__":
    run(main)
