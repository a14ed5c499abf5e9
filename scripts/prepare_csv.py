"""Turn a CSV file with the columns instruction, output and optionally input into a data folder."""

from lit_llm.args import PrepareCsvArgs
from lit_llm.cli import run


def main(args: PrepareCsvArgs) -> None:
    from lit_llm.prepare import csv_rows, prepare

    prepare(args, str(args.csv_path), args.csv_path, csv_rows(args.csv_path))


if __name__ == "__main__":
    run(main)
