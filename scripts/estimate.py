"""Estimate parameters and memory of a finetuning run from config.json alone.

With --gpu, estimate speed too, and the settings that fit on one GPU or, with --devices and --num_nodes, on several.
"""

from lit_llm.args.measure import EstimateArgs
from lit_llm.cli import run


def main(args: EstimateArgs) -> None:
    from lit_llm.estimation.step_memory import estimate_run
    from lit_llm.files import json_text

    print(json_text(estimate_run(args), indent=2))


if __name__ == "__main__":
    run(main)
