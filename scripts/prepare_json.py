"""Convert JSON, JSON lines or parquet to a data folder: instructions, conversations, preference pairs or plain text."""

from lit_llm.args.data import PrepareJsonArgs
from lit_llm.cli import run


def main(args: PrepareJsonArgs) -> None:
    from lit_llm.data.prepare import prepare_table
    from lit_llm.download.hub import local_file

    prepare_table(args, args.json_path, local_file(args.json_path))


if __name__ == "__main__":
    run(main)
