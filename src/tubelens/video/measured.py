"""Frames of measured values: degrees or counts, of an array file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import SupportsIndex

import numpy as np

from tubelens.errors import OptionError
from tubelens.video.arrays import ArrayFrames, unnamed
from tubelens.video.streams import VISIBLE, Stream

SUFFIXES = frozenset((".npy", ".npz", ".tif", ".tiff", ".cptv", ".raw", ".bin"))


def is_measured(stream: Stream) -> bool:
    """Whether a stream holds measured values and not pictures."""
    return Path(stream.path).suffix.lower() in SUFFIXES


class MeasuredFrames:
    """Frames of measured values, scaled once for the whole recording.

    Attributes:
        path: the text that names the source.
        size: height and width.
        fps: average frame rate.
        bands: names of its channels.
        exact: yield the scaled values of each band, float32 in [0, 1], in place of a picture to look at.
        decoded: frames read so far.
        notes: what the user should know.
    """

    rotation = 0
    has_audio = False
    pictures = ("",)

    def __init__(self, stream: Stream, fps: float | None = None) -> None:
        if stream.range is None:
            raise OptionError(f"{stream.path}: say how its values are scaled, as in ?range=15:35")
        self.stream = stream
        self.path: str | None = str(stream)
        low, high = stream.range
        values = np.load(stream.path, allow_pickle=False)
        values = values[..., None] if values.ndim == 3 else values
        self._frames = ArrayFrames(((values - low) / (high - low)).clip(0, 1).astype(np.float32), fps or 25.0)
        self.fps, self.size, self.exact, self.decoded = self._frames.fps, self._frames.size, False, 0
        self.bands = stream.bands or bands_of(stream.name, values.shape[3])
        self.notes: tuple[str, ...] = ()

    def times(self) -> list[float]:
        """Seconds of every frame; the first is 0."""
        return self._frames.times()

    def pick(self, indices: Iterable[SupportsIndex]) -> Iterator[tuple[int, float, np.ndarray]]:
        """Frames by number, increasing: `(number, seconds, frame)`."""
        self._frames.exact = self.exact
        yield from self._frames.pick(indices)

    def between(self, start: float, end: float) -> Iterator[tuple[float, np.ndarray]]:
        """Frames shown from `start` to `end` (seconds), both included within half a frame."""
        self._frames.exact = self.exact
        yield from self._frames.between(start, end)

    def run(self, start: float = 0.0, stride: int = 1) -> Iterator[tuple[float, np.ndarray]]:
        """Every `stride`-th frame from the one shown at `start` (seconds)."""
        self._frames.exact = self.exact
        yield from self._frames.run(start, stride)

    def sha256(self) -> str | None:
        """Hash of the content."""
        return None

    def close(self) -> None:
        """Nothing stays open between calls."""

    def __enter__(self) -> MeasuredFrames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def bands_of(name: str, channels: int) -> tuple[str, ...]:
    """What the channels of a stream of that name are called: `lwir` has LWIR, `visible` R, G, B."""
    if name.lower() in VISIBLE and channels == 3:
        return unnamed(3)
    if not name:
        return unnamed(channels)
    return (name.upper(),) if channels == 1 else tuple(f"{name.upper()}{i}" for i in range(channels))
