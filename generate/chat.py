"""Chat with a model. Ctrl-C stops an answer, Ctrl-D quits, /help lists the commands."""

from lit_llm.args.serve import ChatArgs
from lit_llm.cli import run


def main(args: ChatArgs) -> None:
    from lit_llm.generation.chat import chat

    chat(args)


if __name__ == "__main__":
    run(main)
