"""From what is written on the command line to methods."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tubelens.errors import OptionError
from tubelens.methods import accepts, method, option_names


def chosen(specs: Sequence[str], options: dict[str, Any], seed: int) -> list[Any]:
    """The methods of `specs`; shared options go to those that have them, the seed to those that draw.

    Args:
        specs: names, with options in brackets if wanted: those win.
        options: given for all methods.
        seed: for methods with a seed of which their own brackets say nothing.

    Raises:
        OptionError: unknown name or option, or a shared option that none of the methods has.
    """
    names = [_name(spec) for spec in specs]
    for option, value in options.items():
        if not any(accepts(name, option, value) for name in names):
            shown = value if isinstance(value, str) else ""
            raise OptionError(
                f"--{_FLAGS.get(option, option)} {shown} means nothing to {', '.join(names)}: leave it out,"
                " or choose a method that has it"
            )
    made = []
    for spec, name in zip(specs, names, strict=True):
        shared = {option: value for option, value in options.items() if accepts(name, option, value)}
        if "seed" in option_names(name) and "seed" not in spec:
            shared["seed"] = seed
        made.append(method(spec, **{k: v for k, v in shared.items() if f"{k}=" not in spec.replace(" ", "")}))
    return made


_FLAGS = {"select": "strongest"}


def _name(spec: str) -> str:
    found = re.match(r"\s*([\w+-]+)", spec)
    name = found[1] if found else spec
    method(name)  # complains of an unknown one
    return name


def numbered(names: Sequence[str]) -> list[str]:
    """Equal names told apart by a number, so that no file is overwritten."""
    found: list[str] = []
    for name in names:
        unique, n = name, 2
        while unique in found:
            unique, n = f"{name}-{n}", n + 1
        found.append(unique)
    return found
