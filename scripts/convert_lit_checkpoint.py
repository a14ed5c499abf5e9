"""Write a checkpoint in our layout for transformers, or with --adapter_dir a LoRA adapter for PEFT."""

from lit_llm.args.checkpoint import ConvertLitArgs
from lit_llm.cli import run


def main(args: ConvertLitArgs) -> None:
    from lit_llm.checkpoint.export import export_hf, export_peft

    if args.adapter_dir is None:
        export_hf(args.checkpoint_dir, args.output_dir)
    else:
        export_peft(args.checkpoint_dir, args.adapter_dir, args.output_dir)
    print(f"written to {args.output_dir}")


if __name__ == "__main__":
    run(main)
