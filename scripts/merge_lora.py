"""Merge one LoRA adapter, or a combination of several, into their base, and prove that the result is the same model."""

from lit_llm.args.checkpoint import MergeLoRAArgs
from lit_llm.cli import run


def main(args: MergeLoRAArgs) -> None:
    from lit_llm.checkpoint.combine import combination
    from lit_llm.checkpoint.merge import merge_adapters

    adapters = args.adapter_dir if isinstance(args.adapter_dir, list) else [args.adapter_dir]
    weights = args.weights or [0.5 if args.combine == "slerp" else 1.0] * len(adapters)
    combine = None
    if args.combine != "linear":
        density = 1.0 if args.combine == "slerp" else 0.5 if args.density is None else args.density
        combine = combination(args.combine, density, 1337 if args.seed is None else args.seed)
    proof = merge_adapters(args.checkpoint_dir, adapters, weights, args.output_dir, combine)
    print(f"merged into {args.output_dir}")
    print(
        f"in float32 the logits differ by at most {proof['max_difference']:.1e} from those of adapter and base, "
        f"{proof['share']:.1e} of the largest"
    )
    print(f"as written: {proof['top1_agreement']:.1%} of the most likely tokens agree, KL {proof['kl']:.1e} nats per token")
    ask = f"python generate/full.py --checkpoint_dir {args.output_dir} --prompt Hello"
    print(f"Ask it in prompt style {proof['prompt_style']}: {ask}")


if __name__ == "__main__":
    run(main)
