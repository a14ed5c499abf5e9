"""Serve a model over HTTP, with the routes of the NeurIPS 2023 LLM Efficiency Challenge: /process, /tokenize and /decode."""

from lit_llm.args.generate import ServeArgs
from lit_llm.cli import run


def main(args: ServeArgs) -> None:
    from lit_llm.serve import serve

    serve(args)


if __name__ == "__main__":
    run(main)
