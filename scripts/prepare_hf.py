"""Convert a dataset of the Hugging Face hub to a data folder, while it is streamed."""

from lit_llm.args.data import PrepareHfArgs
from lit_llm.cli import run


def main(args: PrepareHfArgs) -> None:
    from lit_llm.data.hub_datasets import hub_dataset
    from lit_llm.data.prepare import prepare

    prepare(args, hub_dataset(args))


if __name__ == "__main__":
    run(main)
