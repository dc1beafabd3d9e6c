"""Several spectra of one scene, brought to the times and the frame of the first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import SupportsIndex

import numpy as np

from tubelens.video.file import FileFrames
from tubelens.video.images import FolderFrames
from tubelens.video.measured import MeasuredFrames
from tubelens.video.streams import Stream

One = FileFrames | FolderFrames | MeasuredFrames


class PairedFrames:
    """Frames of several streams at once.

    Attributes:
        path: the text that names the source.
        size: height and width of the first stream, to which the others are brought.
        fps: of the first stream.
        bands: of all streams, in their order.
        pictures: names of the streams.
        exact: yield the values of all bands, float32 in [0, 1].
        each: where not exact, yield the pictures of all streams one behind the other, `(h, w, 3 n)`, in place
            of the first's.
        notes: what the user should know.
    """

    rotation = 0

    def __init__(self, text: str, streams: Sequence[Stream], videos: Sequence[One]) -> None:
        self.path: str | None = text
        self.streams, self.videos = tuple(streams), tuple(videos)
        first = self.videos[0]
        self.size, self.fps, self.has_audio = first.size, first.fps, first.has_audio
        self.bands = tuple(band for video in self.videos for band in video.bands)
        self.pictures = tuple(stream.name for stream in self.streams)
        self.exact, self.each, self.decoded = False, False, 0
        self.notes: tuple[str, ...] = ()

    def times(self) -> list[float]:
        """Seconds of every frame; the first is 0."""
        return self.videos[0].times()

    def pick(self, indices: Iterable[SupportsIndex]) -> Iterator[tuple[int, float, np.ndarray]]:
        """Frames by number, increasing: `(number, seconds, frame)`."""
        picked = [video.pick(list(indices)) for video in self.videos]
        for rows in zip(*picked, strict=True):
            frames = [row[2] if row[2].dtype != np.uint8 else row[2].astype(np.float32) / 255 for row in rows]
            yield rows[0][0], rows[0][1], np.concatenate(frames, axis=2) if self.exact else rows[0][2]

    def between(self, start: float, end: float) -> Iterator[tuple[float, np.ndarray]]:
        """Frames shown from `start` to `end` (seconds), both included within half a frame."""
        inside = [i for i, t in enumerate(self.times()) if start <= t + 0.5 / self.fps and t <= end]
        for _, seconds, frame in self.pick(inside):
            yield seconds, frame

    def run(self, start: float = 0.0, stride: int = 1) -> Iterator[tuple[float, np.ndarray]]:
        """Every `stride`-th frame from the one shown at `start` (seconds)."""
        inside = [i for i, t in enumerate(self.times()) if t >= start][::stride]
        for _, seconds, frame in self.pick(inside):
            yield seconds, frame

    def sha256(self) -> str | None:
        """Hash of the contents of all streams."""
        return None

    def close(self) -> None:
        """Close all streams."""
        for video in self.videos:
            video.close()

    def __enter__(self) -> PairedFrames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
