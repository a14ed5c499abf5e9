"""The command line of every script: options from a dataclass, and mistakes told in one line each."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads slow tiny steps 17 times on a busy CPU

import dataclasses
import difflib
import errno
import inspect
import json
import re
import sys
import traceback
import types
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse

from lit_llm.errors import with_flags

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

DEMO = Path(__file__).parent / "demo"


class _Parser(jsonargparse.ArgumentParser):
    """Tells a mistake in one line, with what was probably meant, and exits with 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if unknown := re.match(r"unrecognized arguments: (\S+)|Option '(.+)' is not accepted", message):
            message = self._unknown((unknown[1] or f"--{unknown[2]}").split("=")[0])
        elif typo := re.match(r"Group '(.+)' does not accept option '(.+)'", message):
            message = self._unknown(f"--{typo[1]}.{typo[2]}")
        elif file := re.match(r"Parser key \"config\":\s+(File does not exist|Path is not a file): '(.+)'", message):
            message = f"--config {file[2]} {'does not exist' if file[1].startswith('File') else 'is not a file'}"
        elif group := re.match(r"Parser key \"(\w+)\":\s+Unable to load config '(.*?)'", message):
            message = _no_group(group[1], group[2])
        elif wrong := re.match(r"Parser key \"(.+?)\":.*(?:Given|Got) value: (.*)", message, re.DOTALL):
            message = self._wrong_value(wrong[1], wrong[2]) or message
        _fail(" ".join(line.strip() for line in message.splitlines()), ex)

    def _unknown(self, flag: str) -> str:
        if not flag.startswith("-"):
            return f"unexpected argument {flag}: every value needs its flag before it; see --help"
        options = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(flag, options, n=1)
        hint = f"did you mean {near[0]}?" if near else "see --help"
        return f"unknown flag {flag}; {hint}"

    def _wrong_value(self, key: str, value: str) -> str | None:
        """What a flag takes, from its type."""
        kind = next((getattr(action, "_typehint", None) for action in self._actions if action.dest == key), None)
        parts = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
        names = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path", type(None): "null"}
        takes: list[str] = []
        for part in parts:
            takes += (
                map(str, typing.get_args(part)) if typing.get_origin(part) is typing.Literal else [names.get(part, "a text")]
            )
        return f"--{key} takes {', '.join(takes)}; found {value.strip()}"


def run(main: Callable[[Any], None]) -> None:
    """Parse the command line into the dataclass that `main` takes, call it, and exit.

    Exit codes: 0 success; 2 for what the user can mend (ValueError, OSError), without a traceback unless LIT_LLM_DEBUG is set;
    130 after Ctrl-C; 1, with a traceback, for our own faults.
    """
    if _rank():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # one process speaks for all
    args_type = typing.get_type_hints(main)["args"]
    description = inspect.getdoc(sys.modules[main.__module__])
    parser = _Parser(description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with options; args.yaml of a run repeats it.")
    parser.add_class_arguments(args_type)
    options = {option[2:] for action in parser._actions for option in action.option_strings}
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {with_flags(str(message), options)}", file=sys.stderr)
    argv = _join_texts(parser, _complete_switches(parser, sys.argv[1:]))
    values = parser.parse_args(argv)
    if hasattr(args_type, "method") and values.checkpoint_dir is None and values.data_dir is None:
        values = _with_demo_recipe(parser, args_type, argv)
    try:
        main(_build(args_type, values))
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:
        _fail(with_flags(_tell(error), options), error)
    except Exception:
        sys.stderr = sys.__stderr__
        raise


def _rank() -> int:
    """Number of this process among those of the run, as torchrun, SLURM or the first of them has set it."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def _fail(message: str, error: Exception | None) -> NoReturn:
    """Tell a mistake, and exit. What may have happened in this process alone is told by it, whichever it is."""
    own = sys.__stderr__ if _rank() else sys.stderr
    if error is not None and os.environ.get("LIT_LLM_DEBUG"):
        traceback.print_exception(error, file=own)
    where = f"rank {_rank()}: " if _rank() else ""
    for line in message.splitlines():
        print(f"error: {where}{line}", file=own)
    sys.exit(2)


def _tell(error: Exception) -> str:
    """What to print for an error that the user can mend."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
        return "no space left on the disk. Free some, or write elsewhere; what was saved before is intact"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _complete_switches(parser: _Parser, argv: list[str]) -> list[str]:
    """`--flag` of a yes/no option, with no value behind it, means `--flag=true`."""
    switches = {o for action in parser._actions if getattr(action, "_typehint", None) is bool for o in action.option_strings}
    ends = [i + 1 == len(argv) or argv[i + 1].startswith("--") for i in range(len(argv))]
    return [f"{a}=true" if a in switches and end else a for a, end in zip(argv, ends, strict=True)]


def _join_texts(parser: _Parser, argv: list[str]) -> list[str]:
    """`--flag A --flag B` of an option that takes texts means `--flag=["A", "B"]`, whatever A and B look like."""
    flags = {o for action in parser._actions if getattr(action, "_typehint", None) == list[str] for o in action.option_strings}
    texts: dict[str, list[str]] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        flag, _, value = word.partition("=")
        if flag in flags and (value := value if "=" in word else next(words, None)) is not None:
            texts.setdefault(flag, []).append(value)
        else:
            rest.append(word)
    return rest + [f"{flag}={json.dumps(values)}" for flag, values in texts.items()]


def _with_demo_recipe(parser: _Parser, args_type: type, argv: list[str]) -> jsonargparse.Namespace:
    """Options where neither a checkpoint nor data is named: the demo's recipe, under whatever the command line says."""
    recipe = DEMO / f"{args_type.method}.yaml"  # type: ignore[attr-defined]
    parser.default_config_files = [str(recipe)]
    data_dir = DEMO / ("pairs" if recipe.stem == "dpo" else "data")
    parser.set_defaults(checkpoint_dir=DEMO / "checkpoint", data_dir=data_dir)
    return parser.parse_args(argv)


def _no_group(name: str, found: Any) -> str:
    return f"--{name} is a group of options, as --{name}.NAME, and has no value of its own; found {found}"


def _build(args_type: type, values: jsonargparse.Namespace) -> Any:
    """Instance of the dataclass. Mistakes in all its groups are raised together, as one ValueError."""
    mistakes: list[str] = []

    def build(kind: type, given: Any, group: str = "") -> Any:
        if not isinstance(given, jsonargparse.Namespace):  # as a file may have it
            mistakes.append(_no_group(group, json.dumps(given, default=str)))
            return kind()
        hints = typing.get_type_hints(kind)
        built = {}
        for f in dataclasses.fields(kind):
            value = given[f.name]
            built[f.name] = build(hints[f.name], value, f.name) if dataclasses.is_dataclass(hints[f.name]) else value
        try:
            return kind(**built)
        except ValueError as error:
            mistakes.extend(str(error).splitlines())
            return kind() if group else None  # the defaults, so that what holds the group is judged too

    args = build(args_type, values)
    if mistakes:
        raise ValueError("\n".join(dict.fromkeys(mistakes)))
    return args
