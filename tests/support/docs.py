"""Commands of the documentation."""

import os
import re
import subprocess
import sys

from conftest import REPOSITORY

BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)


def commands(path):
    return [line for block in BLOCK.findall((REPOSITORY / path).read_text()) for line in block.splitlines() if line.strip()]


def run_all(lines, cwd):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for line in lines:
        line = re.sub(r"^python (\S+)", rf"{sys.executable} {REPOSITORY}/\1", line)
        done = subprocess.run(line, shell=True, cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
