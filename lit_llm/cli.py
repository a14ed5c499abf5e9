"""The command line of every script: options from a dataclass, and one line for each mistake."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads slow tiny steps 17 times on a busy CPU

import dataclasses
import difflib
import errno
import functools
import inspect
import json
import re
import signal
import sys
import traceback
import types
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml

from lit_llm.errors import OptionError, is_out_of_memory, with_flags

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

DEMO = Path(__file__).parent / "demo"
MAX_CONFIG_VALUES = 10_000


class _Parser(jsonargparse.ArgumentParser):
    """Parser that reports a mistake in one line, with the most likely correction, and exits with 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        for pattern, explain in _EXPLANATIONS:
            if match := re.match(pattern, message):
                message = explain(self, *match.groups()) or message
                break
        _fail(" ".join(line.strip() for line in message.splitlines()), ex)

    def unknown(self, flag: str) -> str:
        flag = flag.split("=")[0]
        if not flag.startswith("-"):
            return f"unexpected argument {flag}: every value needs its flag before it; see --help"
        options = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(flag, options, n=1)
        hint = f"did you mean {near[0]}?" if near else "see --help"
        return f"unknown flag {flag}; {hint}"

    def wrong_value(self, key: str, value: str) -> str | None:
        """Name the values that a flag takes, from its type."""
        kind = next((getattr(action, "_typehint", None) for action in self._actions if action.dest == key), None)
        parts = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
        names = {
            int: "an integer",
            float: "a number",
            bool: "true or false",
            Path: "a path",
            type(None): "null",
            dict: "a JSON object",
        }
        takes: list[str] = []
        for part in parts:
            is_choice = typing.get_origin(part) is typing.Literal
            takes += map(str, typing.get_args(part)) if is_choice else [names.get(typing.get_origin(part) or part, "a string")]
        return f"--{key} takes {', '.join(takes)}; found {value.strip()}"


class _ConfigFile(jsonargparse.ActionConfigFile):  # pyright: ignore[reportPrivateImportUsage]
    """Option that reads a YAML file, which is checked first: jsonargparse explains less."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        if os.path.isfile(values) and (mistake := _mistake_in_config(Path(values))):
            parser.error(f"--config {values} {mistake}")
        super().__call__(parser, cfg, values, option_string)


def _mistake_in_config(path: Path) -> str | None:
    """Return why a file cannot hold options."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        return f"is not a text file in UTF-8 ({error.reason} at byte {error.start})"
    except (yaml.YAMLError, RecursionError) as error:
        return f"is not valid YAML: {'it is nested too deeply' if isinstance(error, RecursionError) else error}"
    if not isinstance(content, dict):
        return f"must contain options, like `seed: 1`; found {type(content).__name__}"
    left, n_values = [content], 0
    while left:
        value = left.pop()
        n_values += 1
        if n_values > MAX_CONFIG_VALUES:
            return f"has more than {MAX_CONFIG_VALUES:,} values, or aliases that repeat them"
        if isinstance(value, dict) and (wrong := [key for key in value if not isinstance(key, str)]):
            return f"has the key {wrong[0]!r}, which is not the name of an option"
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return None


def _not_a_group(name: str, found: object) -> str:
    return f"--{name} is a group of options, as --{name}.NAME, and has no value of its own; found {found}"


# Messages of jsonargparse, and what to print instead: a function of the parser and the groups of the pattern.
_EXPLANATIONS: list[tuple[str, Callable[..., str | None]]] = [
    (r"unrecognized arguments: (\S+)", _Parser.unknown),
    (r"Option '(.+)' is not accepted", lambda parser, name: parser.unknown(f"--{name}")),
    (r"Group '(.+)' does not accept option '(.+)'", lambda parser, group, name: parser.unknown(f"--{group}.{name}")),
    (r"Parser key \"config\":\s+File does not exist: '(.+)'", lambda _, file: f"--config {file} does not exist"),
    (r"Parser key \"config\":\s+Path is not a file: '(.+)'", lambda _, file: f"--config {file} is not a file"),
    (r"Parser key \"(\w+)\":\s+Unable to load config '(.*?)'", lambda _, group, found: _not_a_group(group, found)),
    (r"(?s)Parser key \"(.+?)\":.*(?:Given|Got) value: (.*)", _Parser.wrong_value),
]


def run(main: Callable[[Any], None]) -> None:
    """Parse the command line into the dataclass that `main` takes, call it, and exit.

    Exit codes: 0 for success; 2 for an error that the user can fix (ValueError, OSError, no memory), without a traceback
    unless LIT_LLM_DEBUG is set; 130 after Ctrl-C; 141 if the reader of a pipe ended; 1, with a traceback, for a bug.
    """
    _open_standard_streams()
    try:
        try:
            _parse_and_call(main)
        finally:
            sys.stdout.flush()  # not at the end of the interpreter, where an error cannot be explained
    except BrokenPipeError:
        _discard(sys.stdout, sys.stderr)
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # of flush
        _discard(sys.stdout)
        _fail(_describe(error), error)


def _open_standard_streams() -> None:
    """Open what the caller closed: another file would get its number, and what C libraries print to it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115


def _discard(*streams: typing.TextIO) -> None:
    """Make the interpreter flush these streams into nothing at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(null, stream.fileno())


def _parse_and_call(main: Callable[[Any], None]) -> None:
    if environment_rank():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # rank 0 prints for all
    args_type = typing.get_type_hints(main)["args"]
    description = inspect.getdoc(sys.modules[main.__module__])
    parser = _Parser(description=description, allow_abbrev=False)
    parser.add_argument("--config", action=_ConfigFile, help="YAML file with options; args.yaml of a run repeats it.")
    parser.add_class_arguments(args_type)
    options = {option[2:] for action in parser._actions for option in action.option_strings}

    @functools.cache  # Python forgets what it has shown whenever a library changes its filters
    def show(message: str) -> None:
        print(f"warning: {with_flags(message, options)}", file=sys.stderr)

    warnings.showwarning = lambda message, *_, **__: show(str(message))
    argv = _join_strings(parser, _complete_switches(parser, sys.argv[1:]))
    values = parser.parse_args(argv)
    if hasattr(args_type, "method") and values.checkpoint_dir is None and values.data_dir is None:
        recipe, folders = demo_recipe(args_type.method)
        parser.default_config_files = [str(recipe)]
        parser.set_defaults(folders)
        values = parser.parse_args(argv)  # the command line overrides the recipe
    try:
        main(_build(args_type, values))
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        _fail(with_flags(_describe(error), options), error)
    except Exception as error:
        if is_out_of_memory(error):
            reason = " ".join(str(error).split()) or "MemoryError"
            _fail(f"not enough memory ({reason}). Free some, raise the limit of ulimit, or use a smaller model", error)
        sys.stderr = sys.__stderr__
        raise


def environment_rank() -> int:
    """Return the rank of this process, as set by torchrun, SLURM or the process that started it."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def _fail(message: str, error: Exception | None) -> NoReturn:
    """Print an error and exit. Every rank prints its own: the error may have happened on one of them only."""
    own = sys.__stderr__ if environment_rank() else sys.stderr
    if error is not None and os.environ.get("LIT_LLM_DEBUG"):
        traceback.print_exception(error, file=own)
    where = f"rank {environment_rank()}: " if environment_rank() else ""
    for line in message.splitlines():
        print(f"error: {where}{line}", file=own)
    sys.exit(2)


def _describe(error: Exception) -> str:
    """Return the message of an error that the user can fix."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
        return "no space left on the disk. Free some, or write elsewhere; earlier checkpoints are intact"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _complete_switches(parser: _Parser, argv: list[str]) -> list[str]:
    """Expand `--flag` of a boolean option without a value into `--flag=true`."""
    switches = {o for action in parser._actions if getattr(action, "_typehint", None) is bool for o in action.option_strings}
    ends = [i + 1 == len(argv) or argv[i + 1].startswith("--") for i in range(len(argv))]
    return [f"{a}=true" if a in switches and end else a for a, end in zip(argv, ends, strict=True)]


def _join_strings(parser: _Parser, argv: list[str]) -> list[str]:
    """Turn `--flag A --flag B` of an option that takes strings into `--flag=["A", "B"]`, whatever A and B contain."""
    flags = {o for action in parser._actions if getattr(action, "_typehint", None) == list[str] for o in action.option_strings}
    strings: dict[str, list[str]] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        flag, _, value = word.partition("=")
        if flag in flags and (value := value if "=" in word else next(words, None)) is not None:
            strings.setdefault(flag, []).append(value)
        else:
            rest.append(word)
    return rest + [f"{flag}={json.dumps(values)}" for flag, values in strings.items()]


def demo_recipe(method: str) -> tuple[Path, dict[str, Path]]:
    """Return the file with the options of the embedded demo, and the folders that it trains on."""
    data_dir = DEMO / ("pairs" if method == "dpo" else "data")
    return DEMO / f"{method}.yaml", {"checkpoint_dir": DEMO / "checkpoint", "data_dir": data_dir}


def _build(args_type: type, values: jsonargparse.Namespace) -> Any:
    """Build the dataclass. Mistakes in all its groups are raised together, as one OptionError."""
    mistakes: list[str] = []

    def build(kind: type, given: Any, group: str = "") -> Any:
        if not isinstance(given, jsonargparse.Namespace):  # from a config file
            mistakes.append(_not_a_group(group, json.dumps(given, default=str)))
            return kind()
        hints = typing.get_type_hints(kind)
        built = {}
        for f in dataclasses.fields(kind):
            value = given[f.name]
            built[f.name] = build(hints[f.name], value, f.name) if dataclasses.is_dataclass(hints[f.name]) else value
        try:
            return kind(**built)
        except ValueError as error:
            prefix = f"{group}." if group else ""
            mistakes.extend(with_flags(str(error), hints, prefix).splitlines())
            return kind() if group else None  # the defaults, so that the rules of the parent are checked too

    args = build(args_type, values)
    if mistakes:
        raise OptionError("\n".join(dict.fromkeys(mistakes)))
    return args
