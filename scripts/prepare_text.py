"""Turn plain text into a data folder, for continued pretraining."""

from lit_llm.args.data import PrepareTextArgs
from lit_llm.cli import run


def main(args: PrepareTextArgs) -> None:
    from lit_llm.download.hub import local_file
    from lit_llm.prepare import COLUMNS, prepare
    from lit_llm.sources import text_rows, to_record

    path = local_file(args.text_path)
    rows = text_rows(path, args.separator, args.chunk_chars)
    prepare(args, args.text_path, path, rows, lambda row: to_record(row, COLUMNS))


if __name__ == "__main__":
    run(main)
