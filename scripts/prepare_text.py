"""Convert plain text to a data folder for continued pretraining."""

from lit_llm.args.data import PrepareTextArgs
from lit_llm.cli import run


def main(args: PrepareTextArgs) -> None:
    from lit_llm.data.file_readers import text_rows
    from lit_llm.data.prepare import prepare
    from lit_llm.download.hub import local_file

    path = local_file(args.text_path)
    rows = text_rows(path, args.separator, args.chunk_chars)
    prepare(args, args.text_path, path, rows)


if __name__ == "__main__":
    run(main)
