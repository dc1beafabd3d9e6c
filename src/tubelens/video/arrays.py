"""Frames of an array that is in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

import numpy as np
from torch import Tensor

from tubelens.errors import InputError
from tubelens.video.display import shown
from tubelens.video.moments import increasing, shown_at, shown_between

COLOURS, GREY = ("R", "G", "B"), ("Y",)


class ArrayFrames:
    """Frames of an array `(t, h, w, c)`: uint8, or float in [0, 1].

    Attributes:
        path: None.
        size: height and width.
        fps: frames a second that the array stands for.
        array: as given.
        bands: names of its channels: R, G, B of three, Y of one, else b0, b1, ...
        exact: yield the array's own values instead of uint8.
        decoded: frames taken so far.
    """

    path: str | None = None
    rotation = 0
    has_audio = False
    pictures: tuple[str, ...] = ("",)
    notes: tuple[str, ...] = ()

    def __init__(self, array: Any, fps: float = 25.0, exact: bool = False) -> None:
        frames = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
        if frames.ndim != 4 or 0 in frames.shape:
            raise InputError(f"an array must be (t, h, w, c) and not empty, got shape {frames.shape}")
        if frames.dtype != np.uint8 and not np.issubdtype(frames.dtype, np.floating):
            raise InputError(f"an array must be uint8 or float, got {frames.dtype}")
        if frames.dtype != np.uint8 and not (frames.min() >= 0 and frames.max() <= 1):  # also catches NaN
            raise InputError(
                f"a float array must lie in [0, 1], got {frames.min():.4g} to {frames.max():.4g}:"
                " divide by its full scale"
            )
        self.array = frames
        self.fps = float(fps)
        self.exact = exact
        self.decoded = 0
        self.size: tuple[int, int] = (frames.shape[1], frames.shape[2])
        self.bands: tuple[str, ...] = unnamed(frames.shape[3])

    def times(self) -> list[float]:
        """Seconds of every frame; the first is 0."""
        return [number / self.fps for number in range(len(self.array))]

    def pick(self, indices: Iterable[SupportsIndex]) -> Iterator[tuple[int, float, np.ndarray]]:
        """Frames by number, increasing: `(number, seconds, frame)`; one channel is shown as grey.

        Raises:
            OptionError: not increasing, or a number that the array does not have.
        """
        for number in increasing(indices, len(self.array), "the array"):
            self.decoded += 1
            frame = self.array[number]
            yield number, number / self.fps, frame if self.exact else shown(frame)

    def between(self, start: float, end: float) -> Iterator[tuple[float, np.ndarray]]:
        """Frames shown from `start` to `end` (seconds), both included within half a frame."""
        for _, seconds, frame in self.pick(shown_between(self.times(), start, end, self.fps)):
            yield seconds, frame

    def run(self, start: float = 0.0, stride: int = 1) -> Iterator[tuple[float, np.ndarray]]:
        """Every `stride`-th frame from the one shown at `start` (seconds).

        Raises:
            OptionError: the array ends before `start`.
        """
        first = shown_at(self.times(), start, self.fps, "the array")
        for _, seconds, frame in self.pick(range(first, len(self.array), stride)):
            yield seconds, frame

    def sha256(self) -> str | None:
        """None: an array is known by itself."""
        return None

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> ArrayFrames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def unnamed(channels: int) -> tuple[str, ...]:
    """What so many channels are called where nobody says."""
    if channels == 3:
        return COLOURS
    return GREY if channels == 1 else tuple(f"b{i}" for i in range(channels))
