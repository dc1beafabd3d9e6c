"""From a video to one clip: which frames, and where they came from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tubelens.clip import Clip, Dense, Pad
from tubelens.errors import OptionError, nearest
from tubelens.model import InputSpec
from tubelens.video.flow import has_flow, read_flow
from tubelens.video.frames import Frames, exactly, open_video
from tubelens.video.prepare import Prepare, Shape, after, source_of
from tubelens.video.sampling import Span, planned, said, spanned, stood_for

Path = str | os.PathLike[str]


def read_clip(
    path: Path | np.ndarray | Tensor,
    frames: int = 16,
    size: int | tuple[int, int] = 112,
    resize: int | tuple[int, int] | None = None,
    stride: int | None = None,
    sampling: str | None = None,
    start: float = 0.0,
    seed: int = 0,
    pad: Pad = "clamp",
    fps: float | None = None,
    bands: str | Sequence[str] | None = None,
    antialias: bool = True,
    span: Span | None = None,
) -> Clip:
    """A clip of a video file, of a folder of frames, or of an array `(t, h, w, c)`.

    Args:
        path: the file, the folder, or the array (uint8, or float in [0, 1]).
        frames: clip length.
        size: height and width of the centre crop.
        resize: before the crop, the short side in pixels, or height and width; None: just covers the crop.
        stride: source frames from one sampled frame to the next (dense and random sampling).
        sampling: `uniform`, `dense`, `segments` or `random`. By default uniform; dense where `stride` or
            `start` is given.
        start: seconds; dense sampling begins with the frame shown then.
        seed: of random sampling.
        pad: what follows a video that is too short: its last frame (`clamp`) or black (`zero`).
        fps: frame rate of a folder or an array, 25 by default.
        bands: names of the channels. A video gives R, G, B in any order, or one band of another name: grey.
        antialias: filter before shrinking.
        span: seconds `(start, end)` of the only part that is sampled, as if it were the whole video; an end
            of None is the video's.

    Raises:
        VideoError: it cannot be read.
        OptionError: options that mean nothing together, or a start after the end.
    """
    crop = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if sampling == "uniform" and (stride is not None or start):
        raise OptionError("uniform sampling takes no stride and no start: use sampling='dense'")
    video = open_video(path, fps)
    with video:
        names = _bands(video, bands)
        spec = InputSpec(frames, crop, resize, 1, None, names, antialias)
        return _read(video, spec, sampling, stride=stride, start=start, seed=seed, pad=pad, span=span)


def read_spec(
    path: Path | np.ndarray | Tensor, spec: InputSpec, sampling: str | None = None, **options: Any
) -> Clip:
    """The clip that a recipe makes of a video.

    Args:
        path: the file, the folder, or the array.
        spec: frames, size, resize, stride, bands.
        sampling: `uniform`, `dense`, `segments` or `random`, by default the recipe's; `stride` or `start`
            make the default dense.
        options: `start`, `stride`, `frames`, `seed`, `pad`, in place of the recipe's; `fps` of a folder;
            `span`, seconds `(start, end)` of the only part that is sampled, as if it were the whole video.

    Raises:
        VideoError: it cannot be read.
        OptionError: an unknown option, or a start after the end.
    """
    known = ("start", "stride", "frames", "seed", "pad", "fps", "span")
    _check_names(options, known)
    spec = replace(spec, frames=int(options.pop("frames", spec.frames)))
    if has_flow(spec.bands) and isinstance(path, str | os.PathLike):
        return read_flow(path, spec, sampling, **options)
    with open_video(path, options.pop("fps", None)) as video:
        return _read(video, spec, sampling, **options)


def _read(
    video: Frames,
    spec: InputSpec,
    sampling: str | None,
    stride: int | None = None,
    start: float = 0.0,
    seed: int = 0,
    pad: Pad = "clamp",
    span: Span | None = None,
) -> Clip:
    if span is not None and start:
        raise OptionError("a span has its own start: give a span or a start")
    how = planned(spec, video.fps, sampling, stride, start, seed, pad)
    shape = Shape.of(video.size, spec.size, spec.resize, spec.antialias)
    prepare = Prepare(shape, spec.bands, video)
    exactly(video)
    if isinstance(how, Dense) and span is None:
        clip, times = _dense(video, how, prepare)
        seen, padded = (times[0], times[-1]), len(clip) - len(set(times))
    else:
        every, first = video.times(), 0
        if span is not None:
            part = spanned(every, span, video.fps, str(video.path or "the array"))
            every, first = every[part.start : part.stop], part.start
        wanted = how.pick(len(every))
        real = sorted({first + index for index in wanted if index >= 0})
        taken = {index - first: prepare(frame) for index, _, frame in video.pick(real)}
        black = torch.zeros_like(next(iter(taken.values())))
        clip = [taken[index] if index >= 0 else black for index in wanted]
        times, seen, padded = stood_for(how, every, wanted)
    step = spec.stride_at(video.fps) if stride is None else stride
    times = after(times, len(clip), step / video.fps)
    source = source_of(video, shape, times, seen, said(how, span), padded)
    return Clip(torch.stack(clip, dim=1), spec.bands, source)


def _dense(video: Frames, how: Dense, prepare: Prepare) -> tuple[list[Tensor], list[float]]:
    """Frames from `start` on, decoded no further than the last one needed."""
    clip: list[Tensor] = []
    times: list[float] = []
    for seconds, frame in video.run(how.start, how.stride):
        clip.append(prepare(frame))
        times.append(seconds)
        if len(clip) == how.frames:
            break
    filler = clip[-1] if how.pad == "clamp" else torch.zeros_like(clip[-1])
    return clip + [filler] * (how.frames - len(clip)), times


def _bands(video: Frames, bands: str | Sequence[str] | None) -> tuple[str, ...]:
    if bands is not None:
        return tuple(bands)
    return video.bands


def _check_names(options: dict[str, Any], known: Sequence[str]) -> None:
    for name in options:
        if name not in known:
            raise OptionError(f"unknown option {name!r}{nearest(name, known)}: one of {', '.join(known)}")
