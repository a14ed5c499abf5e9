"""Convert LIMA, or any JSON lines in its format, to a data folder."""

from lit_llm.args.data import PrepareLimaArgs
from lit_llm.cli import run


def main(args: PrepareLimaArgs) -> None:
    from lit_llm.data.file_readers import json_rows
    from lit_llm.data.prepare import COLUMNS, prepare
    from lit_llm.data.rows import to_record
    from lit_llm.download.hub import local_file

    def record(row):
        turns = row.get("conversations") if isinstance(row, dict) else None
        if isinstance(turns, list) and not args.include_multiturn_conversations:
            row = {"conversations": turns[:2]}
        return to_record(row, COLUMNS)

    path = local_file(args.data_file)
    prepare(args, args.data_file, path, json_rows(path), record)


if __name__ == "__main__":
    run(main)
