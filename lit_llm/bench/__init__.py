"""What `eval/benchmark.py` measures: a module for each check, whose `measure(args)` prints JSON on stdout, tables on stderr."""
