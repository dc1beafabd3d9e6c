"""One way to frames, wherever they are: a file, a folder of images, measured values, an array, or several
spectra of one scene.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torch import Tensor

from tubelens.errors import OptionError
from tubelens.video.arrays import ArrayFrames
from tubelens.video.file import FileFrames
from tubelens.video.images import FolderFrames
from tubelens.video.measured import MeasuredFrames, is_measured
from tubelens.video.paired import PairedFrames
from tubelens.video.streams import Stream, streams

__all__ = ["ArrayFrames", "Frames", "exactly", "open_stream", "open_video"]

Frames = FileFrames | FolderFrames | ArrayFrames | MeasuredFrames | PairedFrames


def open_video(source: str | os.PathLike[str] | np.ndarray | Tensor, fps: float | None = None) -> Frames:
    """Frames of a source: a path, the text of one (see `tubelens.video.streams`), or an array.

    Args:
        source: a video file, a folder of images, a file of measured values, several spectra of one scene
            (`visible=a.mp4|lwir=b/`), or an array `(t, h, w, c)` (uint8, or float in [0, 1]).
        fps: frame rate of what has no times of its own, 25 by default. A video file has its own.

    Raises:
        VideoError: it cannot be read.
        OptionError: a rate that is not positive, or one for a file.
        InputError: an array of another rank, type or range.
    """
    if fps is not None and not 0 < fps < float("inf"):
        raise OptionError(f"fps must be positive, not {fps}")
    if not isinstance(source, str | os.PathLike):
        return ArrayFrames(source, fps or 25.0)
    parts = streams(source)
    if len(parts) > 1:
        return PairedFrames(os.fspath(source), parts, [open_stream(part, fps) for part in parts])
    return open_stream(parts[0], fps)


def open_stream(stream: Stream, fps: float | None = None) -> FileFrames | FolderFrames | MeasuredFrames:
    """Frames of one stream.

    Args:
        stream: which.
        fps: where the stream itself does not say, of what has no times of its own.

    Raises:
        VideoError: it cannot be read.
        OptionError: an option that means nothing to what is there.
    """
    rate = stream.fps or fps
    if is_measured(stream):
        return MeasuredFrames(stream, rate)
    if Path(stream.path).is_dir():
        return FolderFrames(stream.path, rate or 25.0)
    if stream.fps is not None or (fps is not None and not stream.name):
        raise OptionError(f"{stream.path}: fps is for folders and arrays; a file has its own times")
    return FileFrames(stream.path)


def exactly(video: Frames) -> Frames:
    """The same, yielding the values of each band in place of a picture to look at, where it has such."""
    if isinstance(video, ArrayFrames | MeasuredFrames | PairedFrames):
        video.exact = True
    return video
