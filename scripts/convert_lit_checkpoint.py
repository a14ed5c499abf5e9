"""Write a checkpoint for transformers, a LoRA adapter for PEFT, or either as a GGUF file for llama.cpp and Ollama."""

from lit_llm.args.checkpoint import ConvertLitArgs
from lit_llm.cli import run


def main(args: ConvertLitArgs) -> None:
    if args.format == "gguf":
        return write_gguf(args)
    from lit_llm.checkpoint.export import export_hf, export_peft

    if args.adapter_dir is None:
        export_hf(args.checkpoint_dir, args.output_dir)
    else:
        export_peft(args.checkpoint_dir, args.adapter_dir, args.output_dir)
    print(f"written to {args.output_dir}")


def write_gguf(args: ConvertLitArgs) -> None:
    from lit_llm.checkpoint.gguf_export import REPORT, export_gguf, export_gguf_adapter

    if args.adapter_only:
        assert args.adapter_dir is not None
        export_gguf_adapter(args.checkpoint_dir, args.adapter_dir, args.output_dir)
    else:
        kinds = args.gguf_type if isinstance(args.gguf_type, list) else [args.gguf_type]
        export_gguf(args.checkpoint_dir, args.output_dir, kinds, args.adapter_dir)
    print((args.output_dir / REPORT).read_text())
    print(f"written to {args.output_dir}")


if __name__ == "__main__":
    run(main)
