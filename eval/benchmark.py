"""Measure this package on this machine: speed and memory compared with its peers, and results that must not change."""

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.cli import run


def main(args: BenchmarkArgs) -> None:
    from importlib import import_module

    import_module(f"lit_llm.bench.{args.check}").measure(args)


if __name__ == "__main__":
    run(main)
