"""The checks of `eval/benchmark.py`: one module each, whose `measure(args)` prints JSON on stdout and a table on stderr."""
