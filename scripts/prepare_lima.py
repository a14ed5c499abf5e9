"""Convert LIMA, or any JSON lines in its format, to a data folder."""

from lit_llm.args.data import PrepareLimaArgs
from lit_llm.cli import run


def main(args: PrepareLimaArgs) -> None:
    from lit_llm.data.file_readers import json_rows
    from lit_llm.data.prepare import prepare
    from lit_llm.download.hub import local_file

    def first_exchange(row):
        turns = row.get("conversations") if isinstance(row, dict) else None
        return {**row, "conversations": turns[:2]} if isinstance(turns, list) else row

    path = local_file(args.data_file)
    rows = json_rows(path)
    prepare(args, args.data_file, path, rows if args.include_multiturn_conversations else map(first_exchange, rows))


if __name__ == "__main__":
    run(main)
