"""The frames to draw on: opened again, checked, and chosen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from tubelens.clip import Clip, Source
from tubelens.errors import OptionError, VideoError
from tubelens.explanation import Explanation
from tubelens.video import Frames, open_video
from tubelens.video.streams import absent

Many = Explanation | Sequence[Explanation]
"""One explanation, or several of the same video."""
On = str | os.PathLike[str] | np.ndarray | Tensor | Clip | None
"""What to draw on in place of the source: a path, `(t, h, w, c)` frames, or a clip."""
SMALL, LEGIBLE = 64, 240
"""Frames whose short side is below the first are drawn enlarged, to a short side of at least the second."""
EPSILON = 1e-6
"""Seconds by which two readings of one time stamp may differ."""


def as_list(explanations: Many) -> list[Explanation]:
    """One or several explanations of one video as a list.

    Raises:
        OptionError: none, or of different videos.
    """
    many = [explanations] if isinstance(explanations, Explanation) else list(explanations)
    if not many:
        raise OptionError("nothing to draw: give at least one explanation")
    first = many[0].source
    for other in (e.source for e in many[1:]):
        if (other.path, other.size) != (first.path, first.size):
            raise OptionError(
                f"side by side needs explanations of one video, got {first.name} and {other.name}"
            )
        if other.array is not first.array:
            raise OptionError("side by side needs explanations of one array, got two different ones")
    return many


def open_source(source: Source, on: On = None) -> Frames:
    """The frames to draw on: the source's own, or `on`.

    Raises:
        VideoError: gone, changed since it was explained, or of another frame size.
    """
    given: str | os.PathLike[str] | np.ndarray | Tensor | None
    if isinstance(on, Clip):
        given = on.source.array if on.source.path is None else on.source.path
    else:
        given = on if on is not None else source.array if source.path is None else source.path
    if given is None:
        raise VideoError(
            "this explanation is of an array, which is not stored: pass on= with the frames to draw on"
        )
    if isinstance(given, str | os.PathLike):
        name = os.fspath(given)
        gone = absent(name)
        if gone is not None:
            hint = "" if on is not None else ": pass on= with the file or the frames to draw on"
            raise VideoError(f"{gone}: no such file or folder{hint}")
        video = open_video(name, fps=source.fps if Path(name).is_dir() else None)
    else:
        name = "the array"
        video = open_video(given, fps=source.fps)
    try:
        if tuple(video.size) != tuple(source.size):
            (h, w), (was_h, was_w) = video.size, source.size
            raise VideoError(
                f"{name}: its frames are {w}x{h}, but {was_w}x{was_h} were explained: "
                "pass on= with the video that was explained"
            )
        if on is None and source.sha256 is not None and video.sha256() != source.sha256:
            raise VideoError(
                f"{name}: has changed since it was explained: explain it again, or pass on= to draw anyway"
            )
    except BaseException:
        video.close()
        raise
    return video


@dataclass(frozen=True)
class Moments:
    """Frames of a video: their numbers, and the seconds at which they are shown."""

    indices: tuple[int, ...]
    times: tuple[float, ...]

    @classmethod
    def of(cls, video: Frames, many: Sequence[Explanation]) -> Moments:
        """All frames of the explained spans, from the earliest to the latest.

        Raises:
            VideoError: the video has none there.
        """
        start = min(e.source.span[0] for e in many)
        end = max(e.source.span[1] for e in many)
        inside = [(i, t) for i, t in enumerate(video.times()) if start - EPSILON <= t <= end + EPSILON]
        if not inside:
            raise VideoError(
                f"{video.path or 'the array'}: has no frames from {start:.2f} to {end:.2f} s, the part "
                "that was explained: pass on= with the video that was explained"
            )
        return cls(*(tuple(column) for column in zip(*inside, strict=True)))

    def every(self, step: int) -> Moments:
        """Every `step`-th of them, the first included."""
        return Moments(self.indices[::step], self.times[::step])

    def spread(self, n: int) -> Moments:
        """`n` of them evenly, the first and the last included; all where there are fewer."""
        total = len(self.times)
        if n >= total:
            return self
        places = [total // 2] if n == 1 else [round(i * (total - 1) / (n - 1)) for i in range(n)]
        return Moments(tuple(self.indices[i] for i in places), tuple(self.times[i] for i in places))


def enlargement(size: tuple[int, int]) -> int:
    """The whole factor by which frames of that size are drawn larger: 1 from 64 pixels a side on.

    Thermal sensors may have 16x16 pixels: neither a caption nor a smooth map can be drawn on so few.
    """
    return 1 if min(size) >= SMALL else ceil(LEGIBLE / min(size))


def fitted(
    size: tuple[int, int], columns: int, fit: int | None, rows: int = 1, above: int = 0
) -> tuple[int, int]:
    """Height and width of one picture where `rows` x `columns` together may have `fit` pixels a side.

    Small frames are enlarged by a whole factor, a lesser one where `fit` leaves no room. `above` of these
    pixels are taken by what stands above the rows, at most.

    Raises:
        OptionError: `fit` below 16.
    """
    (h, w), factor = size, enlargement(size)
    if fit is None:
        return h * factor, w * factor
    if fit < 16:
        raise OptionError(f"fit must be at least 16 pixels, not {fit}")
    high = max(1, fit - above)
    if (whole := min(factor, high // (h * rows), fit // (w * columns))) > 0:
        return h * whole, w * whole
    share = min(high / (h * rows), fit / (w * columns))
    return max(1, round(h * share)), max(1, int(w * share + EPSILON))


def fit_to(frame: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """The frame at `size` (height, width); filtered, so that nothing flickers when it shrinks.

    Small frames are enlarged by whole factors without a filter: their pixels stay pixels.
    """
    (h, w), (rows, columns) = size, frame.shape[:2]
    if (rows, columns) == (h, w):
        return frame
    if min(rows, columns) < SMALL and h % rows == 0 and w % columns == 0:
        return np.repeat(np.repeat(frame, h // rows, axis=0), w // columns, axis=1)
    return np.array(Image.fromarray(frame).resize((w, h), Image.Resampling.BILINEAR, reducing_gap=3.0))


def over_time(explanation: Explanation, times: Sequence[float]) -> Float[np.ndarray, "n"]:
    """Mean heat of the frames shown at `times`; 0 outside the span of this explanation."""
    start, end = explanation.source.span
    values = explanation.over_time(times).detach().cpu().numpy().astype(np.float64)
    moments = np.asarray(times)
    values[(moments < start - EPSILON) | (moments > end + EPSILON)] = 0.0
    return np.asarray(values)
