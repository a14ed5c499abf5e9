"""Measure lit_llm on this machine: results as JSON, and as a row of a Markdown table."""

import json

from lit_llm.args import BenchmarkArgs
from lit_llm.cli import run


def main(args: BenchmarkArgs) -> None:
    from lit_llm.bench_memory import load_memory

    checks = {"load_memory": load_memory}
    results, markdown = checks[args.check](args)
    text = json.dumps(results, indent=2)
    print(text, markdown, sep="\n\n")
    if args.out_file is not None:
        args.out_file.write_text(text + "\n")


if __name__ == "__main__":
    run(main)
