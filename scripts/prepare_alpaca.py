"""Convert Stanford Alpaca, or any JSON list in its format, to a data folder."""

from lit_llm.args.data import PrepareAlpacaArgs
from lit_llm.cli import run


def main(args: PrepareAlpacaArgs) -> None:
    from lit_llm.data.file_readers import json_rows
    from lit_llm.data.prepare import prepare
    from lit_llm.download.hub import local_file

    path = local_file(args.data_file)
    prepare(args, args.data_file, path, json_rows(path))


if __name__ == "__main__":
    run(main)
