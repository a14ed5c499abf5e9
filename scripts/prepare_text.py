"""Convert plain text to a data folder for continued pretraining."""

from lit_llm.args.data import PrepareTextArgs
from lit_llm.cli import run


def main(args: PrepareTextArgs) -> None:
    from lit_llm.data.prepare import prepare
    from lit_llm.data.sources import text_files

    prepare(args, text_files(args.text_path, args.separator, args.chunk_chars))


if __name__ == "__main__":
    run(main)
