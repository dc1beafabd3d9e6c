"""Several views of one video: clips spread over time, crops spread over the longer side, as networks are
tested.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.clip import Box, Clip, Pad, Segments, padded_run, plan
from tubelens.errors import OptionError
from tubelens.layout import Grid
from tubelens.model import InputSpec
from tubelens.video.flow import refuse_flow
from tubelens.video.frames import Frames, exactly, open_video
from tubelens.video.prepare import Prepare, Shape, after, source_of
from tubelens.video.sampling import check_pad


@dataclass(frozen=True)
class View:
    """Where a view lies in what all views together see.

    Attributes:
        frames: number of each of its frames among all frames seen; a frame may come again.
        top, left: of its crop, in pixels of the canvas.
        size: height and width of its crop.
    """

    frames: tuple[int, ...]
    top: int
    left: int
    size: tuple[int, int]

    def put(self, part: Grid) -> Grid:
        """A grid over the view's own clip as a grid over all frames and the whole canvas.

        Where frames come again (overlapping snippets, a short video), cells are put in the order of what they
        look at, and those that look at the same moment share their mean: their sum stays.
        """
        first, stop = part.span
        seen = self.frames[first:stop]
        h, w = self.size
        values, t = _in_order(part.values, self._moments(part.t))
        return Grid(
            values,
            t,
            tuple(y + self.top for y in part.y),
            tuple(x + self.left for x in part.x),
            (min(seen), max(seen) + 1),
            part.weight,
            (self.top, self.left, self.top + h, self.left + w),
        )

    def _moments(self, t: Sequence[float]) -> np.ndarray:
        """Frames of the view's own clip as frames among all; beyond its ends they go on one by one."""
        own, last = np.asarray(t, dtype=np.float64), len(self.frames) - 1
        inside = np.clip(own, 0, last)
        moments: np.ndarray = np.interp(inside, np.arange(last + 1), self.frames) + (own - inside)
        return moments


APART = 1e-3
"""Frames between cells that look at the same moment, because centres must differ."""


def _in_order(values: Float[Tensor, "t h w"], t: np.ndarray) -> tuple[Tensor, tuple[float, ...]]:
    """Cells and their moments, which increase; as they are where the moments do, or decrease."""
    step = np.diff(t)
    if np.all(step > 0) or np.all(step < 0):
        return values, tuple(t.tolist())
    moments, which, counts = np.unique(t.round(6), return_inverse=True, return_counts=True)
    order = np.argsort(which, kind="stable")
    whole = torch.zeros(len(moments), *values.shape[1:], dtype=values.dtype, device=values.device)
    whole.index_add_(0, torch.from_numpy(which).to(values.device), values)
    shape = (-1, *[1] * (values.ndim - 1))
    mean = whole / torch.from_numpy(counts).to(whole).view(shape)
    gap = min([APART, *(np.diff(moments) / (2 * counts.max())).tolist()])
    # the middle one of the cells at a moment is exactly there, so that a map drawn then is their mean
    nth = np.arange(len(t)) - np.repeat(np.cumsum(counts) - counts, counts)
    placed = np.repeat(moments, counts) + (nth - np.repeat(counts // 2, counts)) * gap
    return mean[torch.from_numpy(which[order]).to(values.device)], tuple(placed.tolist())


class ClipViews:
    """Clips times crops of one video; a clip is decoded once for all its crops.

    Attributes:
        source: of all frames that any view sees, and of the canvas that the crops cover together.
        padded: frames of a view that were added, or come again, because the video is too short.
    """

    def __init__(
        self, video: Frames, spec: InputSpec, clips: int, crops: int, stride: int, pad: Pad = "clamp"
    ) -> None:
        _check(spec, clips, crops, stride, pad)
        self.bands = spec.bands
        self._video = video
        exactly(video)
        one = Shape.of(video.size, spec.size, spec.resize, spec.antialias)
        self._corners, canvas = _spread(one, crops)
        self._shape = replace(one, crop=canvas)
        self._crop = spec.size
        self._prepare = Prepare(self._shape, spec.bands, video)
        every = video.times()
        self._runs = _runs(len(every), spec, clips, stride, pad)
        seen = sorted({i for run, real in self._runs for i in run[:real]})
        number = {index: n for n, index in enumerate(seen)}
        longest = max(len(run) - real for run, real in self._runs)
        # frames that repeat at the end, because the video is too short, follow the last one
        self._places = [
            tuple(number[i] for i in run[:real]) + tuple(len(seen) + k for k in range(len(run) - real))
            for run, real in self._runs
        ]
        self.padded = max(len(run) - len(set(run[:real])) for run, real in self._runs)
        times = after([every[i] for i in seen], len(seen) + longest, stride / video.fps)
        self._whole = spec.sampling == "segments"  # which stand for all of the video
        span = (every[0], every[-1]) if self._whole else (every[seen[0]], every[seen[-1]])
        spaced = f"snippets of {spec.snippet}" if self._whole else f"stride {stride}"
        said = f"{clips} clips x {crops} crops, {spaced}"
        self.source = source_of(video, self._shape, times, span, said, self.padded)

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
        for (run, _), places in zip(self._runs, self._places, strict=True):
            frames = self._decode(run)
            times = tuple(self.source.times[n] for n in places)
            span = (times[0], min(times[-1], self.source.span[1]))
            for top, left in self._corners:
                source = replace(
                    self.source,
                    times=times,
                    span=self.source.span if self._whole else span,
                    box=Box(box.top + top * down, box.left + left * along, h * down, w * along),
                )
                pixels = frames[:, :, top : top + h, left : left + w].contiguous()
                yield View(places, top, left, self._crop), Clip(pixels, self.bands, source)

    @staticmethod
    def put(view: View, part: Grid) -> Grid:
        """A grid over a view's own clip as a grid over all frames and the whole canvas."""
        return view.put(part)

    def _decode(self, run: Sequence[int]) -> Tensor:
        taken = {i: self._prepare(f) for i, _, f in self._video.pick(sorted({i for i in run if i >= 0}))}
        black = torch.zeros_like(next(iter(taken.values())))
        return torch.stack([taken[i] if i >= 0 else black for i in run], dim=1)


def _check(spec: InputSpec, clips: int, crops: int, stride: int, pad: str) -> None:
    """Raise OptionError for numbers out of range, and for frames that do not divide into snippets."""
    if clips < 1 or crops < 1:
        raise OptionError(f"there must be at least one clip and one crop, not {clips} x {crops}")
    check_pad(pad)
    sampling = "segments" if spec.sampling == "segments" else "dense"
    plan(sampling, spec.frames, stride=stride, snippet=spec.snippet)


def _runs(n: int, spec: InputSpec, clips: int, stride: int, pad: Pad) -> list[tuple[list[int], int]]:
    """Frame numbers of every clip, spread evenly from the first frame to the last; what follows the number
    of frames given beside them is padding.
    """
    if spec.sampling == "segments":
        runs = Segments(spec.frames, spec.snippet).pick_views(n, clips)
        return [(list(run), len(run)) for run in dict.fromkeys(map(tuple, runs))]
    last = max(0, n - ((spec.frames - 1) * stride + 1))
    firsts = [last // 2] if clips == 1 else [round(k * last / (clips - 1)) for k in range(clips)]
    return [
        (padded_run(n, first, spec.frames, stride, pad), min(spec.frames, len(range(first, n, stride))))
        for first in dict.fromkeys(firsts)
    ]


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
        OptionError: fewer than one clip, crop or frame, a stride below one or beside segments, frames that do
            not divide into snippets, an unknown pad, or optical flow, which is read one clip at a time.
    """
    refuse_flow(path, spec)
    if spec.sampling == "segments" and stride is not None:
        raise OptionError("segments sampling takes no stride: it depends on the length of the video")
    own = replace(spec, frames=spec.frames if frames is None else frames)
    clips = spec.views[0] if clips is None else clips
    crops = spec.views[1] if crops is None else crops
    video = open_video(path, fps)
    step = spec.stride_at(video.fps) if stride is None else stride
    return ClipViews(video, own, clips, crops, step, pad)
