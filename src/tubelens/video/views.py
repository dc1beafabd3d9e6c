"""Several views of one video: clips spread over time, crops spread over the longer side, as networks are
tested.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tubelens.clip import Box, Clip, Pad, padded_run
from tubelens.errors import OptionError
from tubelens.layout import Grid
from tubelens.model import InputSpec
from tubelens.video.frames import ArrayFrames, Frames, open_video
from tubelens.video.prepare import Prepare, Shape, after, source_of


@dataclass(frozen=True)
class View:
    """Where a view lies in what all views together see.

    Attributes:
        frames: number of each of its frames among all frames seen.
        top, left: of its crop, in pixels of the canvas.
        size: height and width of its crop.
    """

    frames: tuple[int, ...]
    top: int
    left: int
    size: tuple[int, int]

    def put(self, part: Grid) -> Grid:
        """A grid over the view's own clip as a grid over all frames and the whole canvas."""
        first, stop = part.span
        own = range(len(self.frames))
        h, w = self.size
        return Grid(
            part.values,
            tuple(np.interp(part.t, own, self.frames).tolist()),
            tuple(y + self.top for y in part.y),
            tuple(x + self.left for x in part.x),
            (self.frames[first], self.frames[stop - 1] + 1),
            part.weight,
            (self.top, self.left, self.top + h, self.left + w),
        )


class ClipViews:
    """Clips times crops of one video; a clip is decoded once for all its crops.

    Attributes:
        source: of all frames that any view sees, and of the canvas that the crops cover together.
        padded: frames of a view that were added because the video is too short.
    """

    def __init__(
        self, video: Frames, spec: InputSpec, clips: int, crops: int, stride: int, pad: Pad = "clamp"
    ) -> None:
        if clips < 1 or crops < 1:
            raise OptionError(f"there must be at least one clip and one crop, not {clips} x {crops}")
        self.bands = spec.bands
        self._video = video
        if isinstance(video, ArrayFrames):
            video.exact = True
        one = Shape.of(video.size, spec.size, spec.resize, spec.antialias)
        self._corners, canvas = _spread(one, crops)
        self._shape = replace(one, crop=canvas)
        self._crop = spec.size
        self._prepare = Prepare(self._shape, spec.bands, video)
        every = video.times()
        self._runs = _runs(len(every), spec, clips, stride, pad)
        seen = sorted({i for run in self._runs for i in run if i >= 0})
        number = {index: n for n, index in enumerate(seen)}
        longest = max(len(run) - len(_real(run)) for run in self._runs)
        self.padded = longest
        # frames that repeat at the end, because the video is too short, follow the last one
        self._places = [
            tuple(number[i] for i in _real(run))
            + tuple(len(seen) + k for k in range(len(run) - len(_real(run))))
            for run in self._runs
        ]
        times = after([every[i] for i in seen], len(seen) + longest, stride / video.fps)
        said = f"{clips} clips x {crops} crops, stride {stride}"
        source = source_of(video, self._shape, times, (every[seen[0]], every[seen[-1]]), said, longest)
        self.source = source

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames seen by any view, height and width of the canvas."""
        return len(self.source.times), *self._shape.crop

    def __len__(self) -> int:
        return len(self._runs) * len(self._corners)

    def __iter__(self) -> Iterator[tuple[View, Clip]]:
        """`(where it lies, clip)`, one clip of the canvas in memory at a time."""
        h, w = self._crop
        down = self._shape.full[0] / self._shape.resized[0]
        along = self._shape.full[1] / self._shape.resized[1]
        box = self._shape.box
        for run, places in zip(self._runs, self._places, strict=True):
            frames = self._decode(run)
            times = tuple(self.source.times[n] for n in places)
            for top, left in self._corners:
                source = replace(
                    self.source,
                    times=times,
                    span=(times[0], min(times[-1], self.source.span[1])),
                    box=Box(box.top + top * down, box.left + left * along, h * down, w * along),
                )
                pixels = frames[:, :, top : top + h, left : left + w].contiguous()
                yield View(places, top, left, self._crop), Clip(pixels, self.bands, source)

    def _decode(self, run: Sequence[int]) -> Tensor:
        taken = {i: self._prepare(f) for i, _, f in self._video.pick(sorted({i for i in run if i >= 0}))}
        black = torch.zeros_like(next(iter(taken.values())))
        return torch.stack([taken[i] if i >= 0 else black for i in run], dim=1)


def _real(run: Sequence[int]) -> list[int]:
    """The frames of a run up to where its padding begins; in increasing order."""
    real: list[int] = []
    for i in run:
        if i < 0 or (real and i <= real[-1]):
            break
        real.append(i)
    return real


def _runs(n: int, spec: InputSpec, clips: int, stride: int, pad: Pad) -> list[list[int]]:
    """Frame numbers of every clip, spread evenly from the first frame to the last."""
    if spec.sampling == "segments":
        segments = spec.frames // spec.snippet
        if n < spec.frames:
            return [padded_run(n, 0, spec.frames, 1, pad)]
        length = (n - spec.snippet + 1) / segments
        shifts = [(k + 0.5) / clips for k in range(clips)]
        starts = [[int((i + shift) * length) for i in range(segments)] for shift in shifts]
        return [[s + j for s in row for j in range(spec.snippet)] for row in starts]
    last = max(0, n - ((spec.frames - 1) * stride + 1))
    firsts = [last // 2] if clips == 1 else [round(k * last / (clips - 1)) for k in range(clips)]
    return [padded_run(n, first, spec.frames, stride, pad) for first in dict.fromkeys(firsts)]


def _spread(shape: Shape, crops: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Corners of crops spread over the longer side, and the size of the canvas that holds them."""
    (rh, rw), (h, w) = shape.resized, shape.crop
    if crops == 1:
        return [(0, 0)], (h, w)
    room = (rh - h, 0) if rh - h > rw - w else (0, rw - w)
    steps = [i / (crops - 1) for i in range(crops)]
    corners = dict.fromkeys((round(room[0] * s), round(room[1] * s)) for s in steps)
    return list(corners), (h + room[0], w + room[1])


def read_views(
    path: str | os.PathLike[str] | np.ndarray | Tensor,
    spec: InputSpec,
    clips: int | None = None,
    crops: int | None = None,
    stride: int | None = None,
    frames: int | None = None,
    pad: Pad = "clamp",
    fps: float | None = None,
) -> ClipViews:
    """Views of a video: clips spread evenly over it, each in crops spread evenly over the longer side.

    Args:
        path: the file, the folder, or the array.
        spec: what the network was trained on, and how many views it is tested with.
        clips: how many, in place of the recipe's.
        crops: of each clip, likewise.
        stride: source frames from one sampled frame to the next, likewise.
        frames: of one clip, likewise.
        pad: what fills a clip of a video that is shorter: its last frame (`clamp`) or black (`zero`).
        fps: frame rate of a folder or an array, 25 by default.

    Raises:
        VideoError: it cannot be read.
        OptionError: fewer than one clip or crop.
    """
    video = open_video(path, fps)
    step = spec.stride_at(video.fps) if stride is None else stride
    own = replace(spec, frames=spec.frames if frames is None else frames)
    return ClipViews(video, own, clips or spec.views[0], crops or spec.views[1], step, pad)
