"""Measure this package on this machine: speed and memory beside its peers, and that results do not depend on the layout."""

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.cli import run


def main(args: BenchmarkArgs) -> None:
    from lit_llm import bench_memory, benchmark

    getattr(bench_memory if args.check == "load_memory" else benchmark, args.check)(args)


if __name__ == "__main__":
    run(main)
