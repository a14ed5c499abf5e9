"""Convert Databricks Dolly, or any JSON lines in its format, to a data folder."""

from lit_llm.args.data import PrepareDollyArgs
from lit_llm.cli import run


def main(args: PrepareDollyArgs) -> None:
    from lit_llm.data.file_readers import json_rows
    from lit_llm.data.prepare import prepare
    from lit_llm.data.rows import COLUMNS
    from lit_llm.download.hub import local_file

    path = local_file(args.data_file)
    columns = {**COLUMNS, "input": "context", "output": "response"}
    prepare(args, args.data_file, path, json_rows(path), columns)


if __name__ == "__main__":
    run(main)
