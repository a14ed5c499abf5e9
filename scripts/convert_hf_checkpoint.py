"""Convert a Hugging Face or Lit-GPT folder to our layout. Optional for the former: they work as they are."""

from lit_llm.args.checkpoint import ConvertHfArgs
from lit_llm.cli import run


def main(args: ConvertHfArgs) -> None:
    from lit_llm.checkpoint.convert import convert

    convert(args.checkpoint_dir, args.dtype, args.dequantize)


if __name__ == "__main__":
    run(main)
