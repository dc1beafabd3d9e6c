"""The command line, `tubelens VERB ...`: one line an error; exit code 0 done, 1 work failed, 2 bad input."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import fields
from itertools import takewhile
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from tubelens.cli import explain, inspect
from tubelens.cli.demo import Demo
from tubelens.cli.evaluate import Evaluate
from tubelens.cli.metrics import Metrics
from tubelens.cli.models import Models
from tubelens.cli.options import OneNetwork
from tubelens.cli.planted import Planted
from tubelens.cli.pyramid import Pyramid
from tubelens.cli.report import Compare, Report
from tubelens.errors import OptionError, TubelensError, nearest
from tubelens.model import is_out_of_memory
from tubelens.video.streams import Stream, named

VERBS: dict[str, type[Any]] = {
    "demo": Demo,
    "predict": inspect.Predict,
    "explain": explain.Explain,
    "pyramid": Pyramid,
    "frames": inspect.Frames,
    "layers": inspect.Layers,
    "models": Models,
    "methods": inspect.Methods,
    "metrics": Metrics,
    "evaluate": Evaluate,
    "report": Report,
    "compare": Compare,
    "planted": Planted,
}

SOURCE = {field.name for field in fields(Stream)} - {"path", "name"}
"""What a source's own text says, and no option does."""
STYLE = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)

USAGE = """usage: tubelens VERB [options]

Shows where and when a video classifier looked, and measures whether that was why.

{verbs}

`tubelens VERB --help` tells the options of a verb, with an example. `--version` tells the version.
Exit codes: 0 done, 1 the work failed, 2 bad usage or input, 130 interrupted.
`--debug` shows the traceback of an error.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; the console script exits with it."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    if not debug:
        warnings.simplefilter("ignore")  # what a library warns of is not the user's to mend
    try:
        command = parse(args)
        code = 0 if command is None else int(command.run() or 0)
        sys.stdout.flush()
        return code
    except TubelensError as error:
        if debug:
            traceback.print_exc()
        print(f"tubelens: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output went away (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("tubelens: interrupted; nothing half-written was left", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        first = " ".join(str(error).split())[:300]
        if is_out_of_memory(error):
            print(
                f"tubelens: out of memory: use fewer --frames, or another --device ({first})", file=sys.stderr
            )
        else:
            print(
                f"tubelens: unexpected {type(error).__name__}: {first} (--debug shows the traceback)",
                file=sys.stderr,
            )
        return 1


def parse(args: list[str]) -> Any:
    """The command, ready to run; None where help was asked for and given.

    Raises:
        OptionError: in one line, with the nearest verb or option.
    """
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        lines = (f"  {verb:{width}}  {(make.__doc__ or '').splitlines()[0]}" for verb, make in VERBS.items())
        print(USAGE.format(verbs="\n".join(lines)))
        return None
    if args[0] == "--version":
        from tubelens import __version__

        print(f"tubelens {__version__}")
        return None
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        raise OptionError(f"unknown verb {verb!r}{nearest(verb, VERBS)}: one of {', '.join(VERBS)}")
    make = VERBS[verb]
    names = {field.name for field in fields(make)}
    known = {f"--{name.replace('_', '-')}" for name in names} | {"--help", "-h"}
    for arg in rest:
        option = arg.partition("=")[0]
        if option.startswith("--") and option.replace("_", "-") not in known:
            if option[2:] in SOURCE and {"video", "videos"} & names:
                raise OptionError(
                    f"{verb} has no option {option}: it belongs to the source, as in PATH?{option[2:]}=..."
                )
            raise OptionError(f"{verb} has no option {option}{nearest(option, sorted(known))}")
    before = list(takewhile(lambda arg: not arg.startswith("-"), rest))
    if "video" in names and len(before) > 1 and all(map(named, before)):
        raise OptionError(
            f"{verb}: {before[0]} and {before[1]} are streams of one scene: join them with |, as in"
            f' "{"|".join(before)}", or give them after --input'
        )
    if "input" in names:
        rest = _inputs_together(verb, rest, one=issubclass(make, OneNetwork))
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(make, args=rest, prog=f"tubelens {verb}", config=STYLE)
    except SystemExit as stop:
        if stop.code in (0, None):
            return None
        raise OptionError(f"{verb}: {_one_line(complaint.getvalue(), make)}") from stop


def _inputs_together(verb: str, args: list[str], one: bool) -> list[str]:
    """All values of --input in one place, so that it may be given several times.

    Args:
        verb: for the error.
        args: what follows the verb.
        one: the verb takes one network and one VIDEO, which may stand behind the option's value.

    Raises:
        OptionError: it is given without a value.
    """
    end = args.index("--") if "--" in args else len(args)
    rest: list[str] = []
    values: list[str] = []
    at = 0
    while at < end:
        option, sign, value = args[at].partition("=")
        at += 1
        if option != "--input":
            rest.append(args[at - 1])
            continue
        mine = [value] if sign else []
        while at < end and not (args[at].startswith("-") and len(args[at]) > 1):
            if mine and (sign or (one and named(args[at]) is None)):
                break
            mine.append(args[at])
            at += 1
        if not mine:
            raise OptionError(f"{verb}: --input needs a value (`--help` tells the options)")
        values += mine
    return [*rest, *(["--input", *values] if values else []), *args[end:]]


def _one_line(box: str, make: type[Any]) -> str:
    """The message inside a box drawn on the terminal (lines, or blanks where these cannot be shown).

    Of a choice that there is not, the choices in the order in which the verb declares them.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    rows = [row.strip(" │╭╮╰╯") for row in text.splitlines()][1:]  # without the title
    said: list[str] = []
    for row in rows:
        if said and row and not row.strip("─-"):  # what follows a rule is help that fits no line
            break
        said.append(row.strip("─-") if not row.strip("─-") else row)
    line = " ".join(" ".join(said).split())
    if wrong := re.match(r"invalid choice '(.*?)' for argument '--([\w-]+)'", line):
        choices = _choices(get_type_hints(make)[wrong[2].replace("-", "_")])
        line = f"--{wrong[2]} {wrong[1]}: must be one of {', '.join(choices)}{nearest(wrong[1], choices)}"
    return f"{line} (`--help` tells the options)"


def _choices(hint: Any) -> list[str]:
    """The words that a type allows, in their order."""
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    return [word for part in get_args(hint) for word in _choices(part)]


def run() -> None:
    """Entry point of the console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be text
    sys.path.append(os.getcwd())  # for --model package.module:factory
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half-written is removed
    sys.exit(main())
