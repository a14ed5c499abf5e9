"""Convert a Hugging Face folder to the native layout: one safetensors file, our names. Optional: folders work as they are."""

from lit_llm.args import ConvertHfArgs
from lit_llm.cli import run


def main(args: ConvertHfArgs) -> None:
    from lit_llm.convert import convert_hf

    convert_hf(args.checkpoint_dir, args.dtype)


if __name__ == "__main__":
    run(main)
