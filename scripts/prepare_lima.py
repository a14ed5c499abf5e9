"""Convert LIMA, or other files in its format, to a data folder."""

from lit_llm.args.data import PrepareLimaArgs
from lit_llm.cli import run


def main(args: PrepareLimaArgs) -> None:
    from lit_llm.data.file_readers import rows_of
    from lit_llm.data.prepare import prepare
    from lit_llm.data.sources import read_first_exchanges, row_files

    prepare(args, row_files(args.data_file, read=rows_of if args.include_multiturn_conversations else read_first_exchanges))


if __name__ == "__main__":
    run(main)
