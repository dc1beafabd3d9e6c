"""A whole video as overlapping clips of one length, one in memory at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tubelens.clip import Clip, Pad, Windows, plan
from tubelens.layout import Grid
from tubelens.model import InputSpec
from tubelens.video.flow import refuse_flow
from tubelens.video.frames import Frames, exactly, open_video
from tubelens.video.moments import shown_at
from tubelens.video.prepare import Prepare, Shape, after, source_of


class ClipWindows:
    """A whole video as overlapping clips of one length, decoded afresh in one pass whenever it is iterated.

    Attributes:
        source: of all sampled frames together, every stride-th of the video.
        plan: how long the windows are and how they overlap.
        padded: frames added because the video is shorter than one window.
    """

    def __init__(self, video: Frames, spec: InputSpec, how: Windows, start: float = 0.0) -> None:
        self.plan = how
        self.bands = spec.bands
        self._video = exactly(video)
        self._shape = Shape.of(video.size, spec.size, spec.resize, spec.antialias)
        self._prepare = Prepare(self._shape, spec.bands, video)
        every = video.times()
        first = 0
        if start:
            first = shown_at(every, start, video.fps, str(video.path or "the array"))
        self._picked = [first + i for i in how.pick(len(every) - first)]
        times = [every[i] for i in self._picked]
        count = max(len(times), how.frames)
        self.padded = count - len(times)
        span = (every[first], every[-1])
        times = after(times, count, how.stride / video.fps)
        self.source = source_of(video, self._shape, times, span, repr(how), self.padded)

    @property
    def size(self) -> tuple[int, int, int]:
        """Sampled frames of the whole video, height and width."""
        return len(self.source.times), *self._shape.crop

    @property
    def starts(self) -> list[int]:
        """First sampled frame of every window: multiples of the hop, but the last ends with the video."""
        last = len(self.source.times) - self.plan.frames
        return [*range(0, last, self.plan.hop), last]

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[int, Clip]]:
        """`(first sampled frame, clip)`, one window in memory at a time."""
        window: deque[Tensor] = deque(maxlen=self.plan.frames)
        starts = deque(self.starts)
        for number, frame in enumerate(self._frames()):
            window.append(frame)
            first = number - self.plan.frames + 1
            if starts and first == starts[0]:
                starts.popleft()
                times = self.source.times[first : number + 1]
                span = (times[0], min(times[-1], self.source.span[1]))
                source = replace(self.source, times=times, span=span)
                yield first, Clip(torch.stack(list(window), dim=1), self.bands, source)

    @staticmethod
    def put(first: int, part: Grid) -> Grid:
        """A grid over a window's own clip as a grid over all sampled frames."""
        return part.shifted(first)

    def _frames(self) -> Iterator[Tensor]:
        last = None
        for _, _, frame in self._video.pick(self._picked):
            last = self._prepare(frame)
            yield last
        assert last is not None
        filler = last if self.plan.pad == "clamp" else torch.zeros_like(last)
        for _ in range(self.padded):
            yield filler


def read_windows(
    path: str | os.PathLike[str] | np.ndarray | Tensor,
    spec: InputSpec,
    stride: int | None = None,
    frames: int | None = None,
    overlap: float = 0.5,
    start: float = 0.0,
    pad: Pad = "clamp",
    fps: float | None = None,
) -> ClipWindows:
    """The whole video as overlapping clips, streamed.

    Args:
        path: the file, the folder, or the array.
        spec: what the network was trained on.
        stride: source frames from one sampled frame to the next, in place of the recipe's.
        frames: of one window, in place of the recipe's.
        overlap: share of a window that the next one sees again.
        start: seconds; what comes before is left out.
        pad: what fills the window of a video that is shorter: its last frame (`clamp`) or black (`zero`).
        fps: frame rate of a folder or an array, 25 by default.

    Raises:
        VideoError: it cannot be read.
        OptionError: a start after the end, an overlap outside [0, 1), or optical flow, which is read one clip
            at a time.
    """
    refuse_flow(path, spec)
    video = open_video(path, fps)
    step = spec.stride_at(video.fps) if stride is None else stride
    length = spec.frames if frames is None else frames
    how = plan("windows", length, stride=step, start=start, overlap=overlap, pad=pad)
    assert isinstance(how, Windows)
    return ClipWindows(video, spec, how, start)
