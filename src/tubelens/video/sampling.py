"""Which frames are asked for and what they stand for: one rule for every reader."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from tubelens.clip import Dense, Pad, Random, Segments, Uniform, Windows, plan
from tubelens.errors import OptionError
from tubelens.model import InputSpec
from tubelens.video.moments import shown_at

OnePlan = Uniform | Dense | Segments | Random
Span = tuple[float, float | None]
"""Seconds of a part of a video; None: to its end."""


def check_pad(pad: str) -> None:
    """Raise OptionError for a padding that there is not."""
    if pad not in ("clamp", "zero"):
        raise OptionError(f"unknown pad {pad!r}: clamp or zero")


def planned(
    spec: InputSpec,
    fps: float,
    sampling: str | None = None,
    stride: int | None = None,
    start: float = 0.0,
    seed: int = 0,
    pad: Pad = "clamp",
) -> OnePlan:
    """The plan of one clip: the recipe's unless told; a stride or a start makes the default dense.

    Raises:
        OptionError: options that mean nothing together, or out of range.
    """
    check_pad(pad)
    if sampling in (None, "uniform") and (stride is not None or start):
        sampling = "dense"
    sampling = sampling or spec.sampling
    if sampling in ("segments", "random") and start:
        raise OptionError(f"{sampling} sampling takes no start: use sampling='dense'")
    if sampling == "segments" and stride is not None:
        raise OptionError("segments sampling takes no stride: use sampling='dense'")
    step = spec.stride_at(fps) if stride is None else stride
    how = plan(sampling, spec.frames, stride=step, start=start, seed=seed, pad=pad, snippet=spec.snippet)
    if isinstance(how, Windows):
        raise OptionError("windows are not one clip: use read_windows, or model.windows(path)")
    return how


def stood_for(
    how: OnePlan, every: Sequence[float], wanted: Sequence[int]
) -> tuple[list[float], tuple[float, float], int]:
    """Times of the frames taken (without the padding that follows them), their span, and how many were added.

    Args:
        how: the plan.
        every: seconds of every frame of the video.
        wanted: what the plan takes of them; -1 is black.
    """
    times = [every[i] for i in wanted if i >= 0]
    span = (every[0], every[-1])
    if isinstance(how, Dense | Random):  # a run, whose last frame repeats as padding
        times = sorted(set(times))
        span = (times[0], times[-1])
    return times, span, len(wanted) - len(set(times))


def spanned(every: Sequence[float], span: Span, fps: float, name: str) -> range:
    """Numbers of the frames on screen from the span's start up to, but not including, its end.

    Args:
        every: seconds of every frame of the video.
        span: seconds; an end after the video's is the video's.
        fps: of the video, for rounding.
        name: of the video, for the error.

    Raises:
        OptionError: the span is empty, negative or not finite, or starts past the end.
    """
    start, end = span
    last = every[-1] + 1 / fps if end is None else end
    if not 0 <= start < float("inf") or not last < float("inf") or (end is not None and not start < end):
        raise OptionError(f"{name}: a span must begin at 0 or later and before it ends, not {start} to {end}")
    first = shown_at(list(every), start, fps, name)
    return range(first, max(first + 1, bisect_left(every, last - 0.1 / fps)))


def said(how: OnePlan, span: Span | None) -> str:
    """The plan, and the part of the video that it is for, as a record keeps it."""
    if span is None:
        return repr(how)
    return f"{how!r} from {span[0]:g} s to {'the end' if span[1] is None else f'{span[1]:g} s'}"
