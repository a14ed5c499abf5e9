"""Convert Stanford Alpaca, or other files in its format, to a data folder."""

from lit_llm.args.data import PrepareAlpacaArgs
from lit_llm.cli import run


def main(args: PrepareAlpacaArgs) -> None:
    from lit_llm.data.prepare import prepare
    from lit_llm.data.sources import row_files

    prepare(args, row_files(args.data_file))


if __name__ == "__main__":
    run(main)
