"""Convert Databricks Dolly, or other files in its format, to a data folder."""

from lit_llm.args.data import PrepareDollyArgs
from lit_llm.cli import run


def main(args: PrepareDollyArgs) -> None:
    from lit_llm.data.prepare import prepare
    from lit_llm.data.rows import COLUMNS
    from lit_llm.data.sources import row_files

    prepare(args, row_files(args.data_file, {**COLUMNS, "input": "context", "output": "response"}))


if __name__ == "__main__":
    run(main)
