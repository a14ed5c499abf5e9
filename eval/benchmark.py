"""Measure this package on this machine: speed and memory beside its peers, and that results do not depend on the layout."""

from lit_llm.args import BenchmarkArgs
from lit_llm.cli import run


def main(args: BenchmarkArgs) -> None:
    from lit_llm import benchmark

    getattr(benchmark, args.check)(args)


if __name__ == "__main__":
    run(main)
