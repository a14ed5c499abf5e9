"""Prepare the parts of a source on a Ray cluster, whose nodes see the same files under the same names."""

import importlib
import os
from collections.abc import Generator, Sequence
from pathlib import Path

from lit_llm.data.parts import Task, part_paths, write_part
from lit_llm.errors import DataError, OptionError, brief


def ray_parts(tasks: Sequence[Task], folder: Path, address: str) -> Generator[Path]:
    """Yield the file of each part in order; see `finished_parts`. Ray makes the part of a killed worker again, 3 times.

    Args:
        folder: On a file system that all nodes share, as the source.
        address: Address of the cluster, or `auto`.

    Raises:
        OptionError: if there is no such cluster.
        DataError: if Ray is missing, or as `Task.entries`.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise DataError("`ray` needs the package ray: pip install ray") from error
    paths, missing = part_paths(tasks, folder)
    package = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(package)}}
    try:
        ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise OptionError(f"`ray` {address} is not a running cluster ({brief(error)}). Start one: ray start --head") from error
    try:
        write = ray.remote(max_retries=3)(_write_part)
        running = {number: write.remote(os.getcwd(), tasks[number], paths[number]) for number in missing}
        for number, path in enumerate(paths):
            if number in running:
                ray.get(running[number])
            yield path
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise ChildProcessError(f"a worker of Ray was lost ({brief(error)}). Run the command again: it resumes") from error
    finally:
        ray.shutdown()


def _write_part(folder: str, task: Task, path: Path) -> None:
    os.chdir(folder)  # paths in the task are as the user gave them
    write_part(task, path)
