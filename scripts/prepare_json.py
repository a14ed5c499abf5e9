"""Turn JSON, or JSON lines, with instruction, output and optionally input into a data folder."""

from lit_llm.args import PrepareJsonArgs
from lit_llm.cli import run


def main(args: PrepareJsonArgs) -> None:
    from lit_llm.prepare import json_rows, prepare

    prepare(args, str(args.json_path), args.json_path, json_rows(args.json_path))


if __name__ == "__main__":
    run(main)
