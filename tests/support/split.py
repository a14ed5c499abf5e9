"""Run as a script: scripts on two ranks, in forked processes.

`python tests/support/split.py FILE`, a JSON list of arguments and where what is printed goes.
"""

import json
import os
import runpy
import sys
from pathlib import Path

import lm_eval.evaluator  # noqa: F401  # once for all that are forked
from ranks import fork

import lit_llm.evaluation.harness  # noqa: F401

REPOSITORY = Path(__file__).parents[2]


def run(arguments, output):
    sys.argv = arguments
    if os.environ["RANK"] == "0":
        os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY), 1)
    runpy.run_path(str(REPOSITORY / arguments[0]), run_name="__main__")
    sys.stdout.flush()


if __name__ == "__main__":
    todo = json.loads(Path(sys.argv[1]).read_text())
    sys.exit(not all(fork(2, lambda a=a, o=o: run([*a, "--devices=2"], o)) for a, o in todo))
