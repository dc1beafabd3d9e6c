"""Frame numbers and the moments they are shown at."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import index
from typing import SupportsIndex

from tubelens.errors import OptionError


def increasing(indices: Iterable[SupportsIndex], count: int, name: str) -> list[int]:
    """The frame numbers, if they increase and exist.

    Raises:
        OptionError: otherwise.
    """
    wanted = [index(i) for i in indices]
    if any(b <= a for a, b in pairwise(wanted)):
        raise OptionError(f"{name}: frame numbers must increase, each once")
    if wanted and not (wanted[0] >= 0 and wanted[-1] < count):
        bad = wanted[0] if wanted[0] < 0 else wanted[-1]
        raise OptionError(f"{name}: there is no frame {bad}: the video has {count} frames")
    return wanted


def shown_at(times: list[float], start: float, fps: float, name: str) -> int:
    """Number of the frame on screen at `start`.

    Raises:
        OptionError: the video has ended by then.
    """
    check_start(start, times[-1] + 1 / fps, fps, name)
    return max(0, bisect_right(times, start + 0.1 / fps) - 1)


def shown_between(times: Sequence[float], start: float, end: float, fps: float) -> list[int]:
    """Numbers of the frames shown from `start` to `end` (seconds), both included within half a frame."""
    half = 0.5 / fps
    return [number for number, t in enumerate(times) if start - half <= t <= end + half]


def check_start(start: float, end: float, fps: float, name: str) -> None:
    """Raise OptionError when `start` is past the end (seconds)."""
    if start >= end - 0.1 / fps:
        raise OptionError(f"{name}: start {start:g} s is past the end: the video lasts {end:.2f} s")
