"""Checks of options that several metrics have. Each raises OptionError, in one line."""

from __future__ import annotations

from typing import Any, get_args

from tubelens.errors import OptionError


def check_seed(seed: object) -> None:
    """Raise OptionError for what no generator takes as a seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise OptionError(f"a seed is a whole number from 0 to 2^63 - 1, not {seed!r}")


def check_cell(cell: Any, what: str = "cell") -> None:
    """Raise OptionError for what is no three whole numbers, one or more along time, height and width."""
    whole = isinstance(cell, tuple) and all(isinstance(n, int) and not isinstance(n, bool) for n in cell)
    if not whole or len(cell) != 3 or min(cell) < 1:
        raise OptionError(
            f"{what} is three whole numbers, at least 1 along time, height and width, not {cell!r}"
        )


def checked(volume: float | None, dilate: int, seed: int = 0, **counts: int) -> None:
    """Options that several metrics have.

    Raises:
        OptionError: a volume outside (0, 1), a count below its least, or what is no seed.
    """
    check_seed(seed)
    if volume is not None and not 0 < volume < 1:
        raise OptionError(f"volume is the share of the voxels in the tube, above 0 and below 1, not {volume}")
    if dilate < 0:
        raise OptionError(f"dilate must be 0 or more pixels, not {dilate}")
    for name, count in counts.items():
        if count < 1:
            raise OptionError(f"{name} must be 1 or more, not {count}")


def one_of(**options: tuple[str, Any]) -> None:
    """Options that are one of a few words, given with their `Literal`.

    Raises:
        OptionError: another word.
    """
    for name, (value, words) in options.items():
        if value not in get_args(words):
            raise OptionError(f"{name} is one of {', '.join(get_args(words))}, not {value!r}")
