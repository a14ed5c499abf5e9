"""Serve a model over HTTP: a chat page, OpenAI's routes, and those of the NeurIPS 2023 LLM Efficiency Challenge."""

from lit_llm.args.serve import ServeArgs
from lit_llm.cli import run


def main(args: ServeArgs) -> None:
    from lit_llm.serving.app import serve

    serve(args)


if __name__ == "__main__":
    run(main)
